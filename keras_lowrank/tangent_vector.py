r"""Vectors of a tangent space of the rank-r manifold: gradients, momenta, directions.

A tangent vector `A` at `W = U S V^T` is stored as a pair: the K-part `A V` (n x r) and the L-part
`A^T U` (m x r). The S-part `U^T A V` (r x r) is in both; it is kept beside them, because whatever
makes the pair often has it for next to nothing. As a matrix,

    A = K V^T + U (L - V S^T)^T = U L^T + (K - U S) V^T.
"""

from typing import NamedTuple

import tensorflow as tf

from keras_lowrank import row_slices


class TangentVector(NamedTuple):
    """A tangent vector at `U S V^T`, as its parts.

    Attributes:
        K: tensor `A V`, shape `(n, r)`; or its rows, as in `row_slices`, where that is announced.
        S: tensor `U^T A V`, shape `(r, r)`.
        L: tensor `A^T U`, shape `(m, r)`.
    """

    K: tf.Tensor
    S: tf.Tensor
    L: tf.Tensor

    def scaled(self, factor):
        """`factor * A`, for a number or a scalar tensor."""
        if tf.is_tensor(factor):  # a number takes the precision of the parts by itself
            factor = tf.cast(factor, self.S.dtype)
        return TangentVector(row_slices.scaled(self.K, factor), factor * self.S, factor * self.L)

    def plus(self, other):
        """`A + B`, for B at the same W."""
        return TangentVector(row_slices.plus(self.K, other.K), self.S + other.S, self.L + other.L)

    def squared_norm(self):
        """`||A||_F^2`; at least 0, also where rounding would have it otherwise."""
        parts = row_slices.values(self.K), self.S, self.L
        k, s, l = (tf.reduce_sum(tf.square(part)) for part in parts)
        return tf.maximum(k + l - s, 0.0)

    def dense(self):
        """The same with K as a tensor."""
        return self._replace(K=row_slices.dense(self.K))


def zeros_at(factors):
    """The zero vector at a `Factorization`."""
    return TangentVector(*(tf.zeros_like(part) for part in factors))


def paired(k, l, u, v):
    r"""The tangent vector of a K-part and an L-part that were worked out apart.

    `U^T K` and `(V^T L)^T` are one S-part in two places; where they differ, both become their
    mean, which is the nearest pair in the Frobenius norm. An integrator relies on that: it takes
    the S-part once, and bases would lose orthonormality by the difference. A K-part that is given
    by its rows stays as it is, for the nearest pair has all n of them, and the L-part follows it.

    Args:
        k: tensor, shape `(n, r)`, or its rows.
        l: tensor, shape `(m, r)`.
        u: tensor U with orthonormal columns, shape `(n, r)`.
        v: tensor V with orthonormal columns, shape `(m, r)`.

    Returns:
        `TangentVector`.
    """
    s = from_k = row_slices.inner(u, k)
    from_l = tf.matmul(l, v, transpose_a=True)
    if not row_slices.is_slices(k):
        s = 0.5 * (from_k + from_l)
        k += tf.matmul(u, s - from_k)
    return TangentVector(k, s, l + tf.matmul(v, s - from_l, transpose_b=True))


class Overlap(NamedTuple):
    """How the bases of another matrix W1 lie to the point and the direction of a step.

    Attributes:
        U: tensor `U^T U1`, shape `(r, k)`.
        V: tensor `V^T V1`, shape `(r, k)`.
        K: tensor `(D V)^T U1`, shape `(r, k)`.
        L: tensor `(D^T U)^T V1`, shape `(r, k)`.
    """

    U: tf.Tensor
    V: tf.Tensor
    K: tf.Tensor
    L: tf.Tensor


def overlap(direction, old, new, known=()):
    """The `Overlap` of W1 with a `TangentVector` D at W, from four products of tall blocks.

    Two are enough where the `Overlap` of another D with the same W and W1 is `known`.
    """
    inner = row_slices.inner
    bases = known[:2] or (inner(old.U, new.U), inner(old.V, new.V))
    return Overlap(*bases, inner(direction.K, new.U), inner(direction.L, new.V))


def carried(tangent, old, lies, factor):
    r"""Projects `c A` onto the tangent space at another matrix, exactly: a momentum, step by step.

    From `A = K V^T + U (L - V S^T)^T`,

        K1 = c (K (V^T V1) + U (L^T V1 - S V^T V1)),
        L1 = c (L (U^T U1) + V (K^T U1 - S^T U^T U1)),

    and `S1 = U1^T K1`: products of n x r and r x r blocks, where the n x m matrix is never formed.

    Args:
        tangent: `TangentVector` A at `old`, ranks r.
        old: `Factorization` W0.
        lies: `Overlap` of A with W1, of any rank k.
        factor: number c. It costs nothing here, and a pass over K and L elsewhere.

    Returns:
        `TangentVector` at W1: shapes `(n, k)`, `(k, k)`, `(m, k)`.
    """
    k, s, l = tangent
    u_u, v_v = factor * lies.U, factor * lies.V
    l_v = factor * lies.L - tf.matmul(s, v_v)
    core = tf.matmul(lies.K, v_v, transpose_a=True) + tf.matmul(lies.U, l_v, transpose_a=True)
    k_u = factor * lies.K - tf.matmul(s, u_u, transpose_a=True)
    return TangentVector(
        row_slices.combined(old.U, l_v, k, v_v),
        core,
        row_slices.combined(old.V, k_u, l, u_u),
    )


def core_in(tangent, old, new):
    """`U1^T A V1`, shape `(k, k)`, for A at `old` and the bases of `new`."""
    k, s, l = tangent
    v_v = tf.matmul(old.V, new.V, transpose_a=True)
    u_u = tf.matmul(old.U, new.U, transpose_a=True)
    l_v = tf.matmul(l, new.V, transpose_a=True) - tf.matmul(s, v_v)
    k_u = tf.matmul(k, new.U, transpose_a=True)
    return tf.matmul(k_u, v_v, transpose_a=True) + tf.matmul(u_u, l_v, transpose_a=True)
