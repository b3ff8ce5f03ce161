r"""Vectors of a tangent space of the rank-r manifold: gradients, momenta, directions.

A tangent vector `A` at `W = U S V^T` is stored as a pair: the K-part `A V` (n x r) and the L-part
`A^T U` (m x r). The S-part `U^T A V` (r x r) is in both; it is kept beside them, because whatever
makes the pair often has it for next to nothing. As a matrix,

    A = K V^T + U (L - V S^T)^T = U L^T + (K - U S) V^T.
"""

from typing import NamedTuple

import tensorflow as tf


class TangentVector(NamedTuple):
    """A tangent vector at `U S V^T`, as its parts.

    Attributes:
        K: tensor `A V`, shape `(n, r)`.
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
        return TangentVector(*(factor * part for part in self))

    def plus(self, other):
        """`A + B`, for B at the same W."""
        return TangentVector(*(one + two for one, two in zip(self, other)))

    def squared_norm(self):
        """`||A||_F^2`; at least 0, also where rounding would have it otherwise."""
        k, s, l = (tf.reduce_sum(tf.square(part)) for part in self)
        return tf.maximum(k + l - s, 0.0)


def zeros_at(factors):
    """The zero vector at a `Factorization`."""
    return TangentVector(*(tf.zeros_like(part) for part in factors))


def paired(k, l, u, v):
    r"""The tangent vector of a K-part and an L-part that were worked out apart.

    `U^T K` and `(V^T L)^T` are one S-part in two places; where they differ, both become their
    mean, which is the nearest pair in the Frobenius norm. An integrator relies on that: it takes
    the S-part once, and bases would lose orthonormality by the difference.

    Args:
        k: tensor, shape `(n, r)`.
        l: tensor, shape `(m, r)`.
        u: tensor U with orthonormal columns, shape `(n, r)`.
        v: tensor V with orthonormal columns, shape `(m, r)`.

    Returns:
        `TangentVector`.
    """
    from_k = tf.matmul(u, k, transpose_a=True)
    from_l = tf.matmul(l, v, transpose_a=True)
    s = 0.5 * (from_k + from_l)
    return TangentVector(
        k + tf.matmul(u, s - from_k), s, l + tf.matmul(v, s - from_l, transpose_b=True)
    )


def core_in(tangent, old, new):
    """`U1^T A V1`, shape `(k, k)`, for A at `old` and the bases of `new`."""
    k, s, l = tangent
    v_v = tf.matmul(old.V, new.V, transpose_a=True)
    u_u = tf.matmul(old.U, new.U, transpose_a=True)
    l_v = tf.matmul(l, new.V, transpose_a=True) - tf.matmul(s, v_v)
    k_u = tf.matmul(k, new.U, transpose_a=True)
    return tf.matmul(k_u, v_v, transpose_a=True) + tf.matmul(u_u, l_v, transpose_a=True)


def projected(tangent, old, new, rows=None, columns=None, factor=None):
    r"""Projects `c diag(p) A diag(q)` onto the tangent space at another matrix, exactly.

    With no p and q this carries a momentum from `W0 = U S V^T` to `W1`; with both, and
    `W1 = W0`, it preconditions one. From `A = K V^T + U (L - V S^T)^T`, with `R = diag(p) U1` and
    `C = diag(q) V1`,

        K1 = diag(p) (K (V^T C) + U (L^T C - S V^T C)),
        L1 = diag(q) (L (U^T R) + V (K^T R - S^T U^T R)),

    and `S1 = U1^T K1`: products of n x r and r x r blocks, where the n x m matrix is never formed.

    Args:
        tangent: `TangentVector` A at `old`, ranks r.
        old: `Factorization` W0.
        new: `Factorization` W1, of any rank k.
        rows: tensor p, shape `(n,)`, or None for ones.
        columns: tensor q, shape `(m,)`, or None for ones.
        factor: number c, or None for 1. It costs nothing here, and a pass over K and L elsewhere.

    Returns:
        `TangentVector` at `new`: shapes `(n, k)`, `(k, k)`, `(m, k)`.
    """
    k, s, l = tangent
    scaled_u = new.U if rows is None else rows[:, None] * new.U
    scaled_v = new.V if columns is None else columns[:, None] * new.V
    v_v = tf.matmul(old.V, scaled_v, transpose_a=True)
    l_v = tf.matmul(l, scaled_v, transpose_a=True) - tf.matmul(s, v_v)
    u_u = tf.matmul(old.U, scaled_u, transpose_a=True)
    k_u = tf.matmul(k, scaled_u, transpose_a=True)
    new_s = tf.matmul(k_u, v_v, transpose_a=True) + tf.matmul(u_u, l_v, transpose_a=True)
    k_u -= tf.matmul(s, u_u, transpose_a=True)
    if factor is not None:
        v_v, l_v, u_u, k_u, new_s = (factor * part for part in (v_v, l_v, u_u, k_u, new_s))
    new_k = tf.matmul(k, v_v) + tf.matmul(old.U, l_v)
    new_l = tf.matmul(l, u_u) + tf.matmul(old.V, k_u)
    return TangentVector(
        new_k if rows is None else rows[:, None] * new_k,
        new_s,
        new_l if columns is None else columns[:, None] * new_l,
    )
