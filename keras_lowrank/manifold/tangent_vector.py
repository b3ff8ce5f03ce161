r"""Vectors of a tangent space of the rank-r manifold: gradients, momenta, directions.

A tangent vector `A` at `W`, with bases U and V of the column and row space of W, is stored as the
K-part `A V` (n x r), the S-part `U^T A V` (r x r) and the L-part `A^T U` (m x r):

    A = K V^T + U L^T - U S V^T.

Any three parts make a tangent vector: an optimizer may scale each part on its own, and the bases
need not be exactly orthonormal.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import tensorflow as tf

from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.point import Point

Bases: TypeAlias = Point | tuple[tf.Tensor, tf.Tensor]


class TangentVector(NamedTuple):
    """A tangent vector as its parts, `A = K V^T + U L^T - U S V^T`.

    Attributes:
        K: tensor `A V`, shape `(n, r)`; where documented, its nonzero rows (`row_sparse`).
        S: tensor `U^T A V`, shape `(r, r)`.
        L: tensor `A^T U`, shape `(m, r)`.

    Example:

    >>> vector = TangentVector(K=tf.ones((4, 1)), S=tf.ones((1, 1)), L=tf.ones((3, 1)))
    >>> float(vector.plus(vector.scaled(-0.5)).squared_norm())
    1.5
    """

    K: row_sparse.Block
    S: tf.Tensor
    L: tf.Tensor

    def scaled(self, factor: tf.Tensor | float) -> TangentVector:
        """`factor * A`, for a number or a scalar tensor."""
        if tf.is_tensor(factor):  # a number takes the type of the parts
            factor = tf.cast(factor, self.S.dtype)
        return TangentVector(row_sparse.scaled(self.K, factor), factor * self.S, factor * self.L)

    def plus(self, other: TangentVector) -> TangentVector:
        """`A + B`, for B at the same W."""
        return TangentVector(row_sparse.plus(self.K, other.K), self.S + other.S, self.L + other.L)

    def squared_norm(self) -> tf.Tensor:
        """`||A||_F^2`; rounding does not make it negative."""
        parts = row_sparse.values(self.K), self.S, self.L
        k, s, l = (2.0 * tf.nn.l2_loss(part) for part in parts)  # a block is read once
        return tf.maximum(k + l - s, 0.0)

    def dense(self) -> TangentVector:
        """The same vector with K as a tensor."""
        return self._replace(K=row_sparse.dense(self.K))


def zero_vector(point: Point) -> TangentVector:
    """The zero vector at a `Point`."""
    return TangentVector(*(tf.zeros_like(part) for part in point))


def transport(
    tangent: TangentVector, old: Bases, new: Bases, factor: tf.Tensor | float = 1.0
) -> TangentVector:
    r"""Projects `c A` onto the tangent space at another matrix, exactly.

    With bases U, V of W and orthonormal bases U1, V1 of the other matrix,

        K1 = A V1   = K (V^T V1) + U (L^T V1 - S V^T V1),
        L1 = A^T U1 = L (U^T U1) + V (K^T U1 - S^T U^T U1),

    and `S1 = U1^T K1`. The n x m matrix is never formed.

    Args:
        tangent: `TangentVector` A at `old`, of rank r.
        old: `(U, V)` or `Point` of W.
        new: the same of the other matrix, of any rank k.
        factor: scalar c, free of cost here.

    Returns:
        `TangentVector` at the other matrix: shapes `(n, k)`, `(k, k)`, `(m, k)`.
    """
    (k, s, l), inner = tangent, row_sparse.inner
    u, v, u1, v1 = old[0], old[-1], new[0], new[-1]
    u_u, k_u = inner(u, u1), inner(k, u1)
    v_v = factor * inner(v, v1)
    l_v = factor * inner(l, v1) - tf.matmul(s, v_v)
    core = tf.matmul(k_u, v_v, transpose_a=True) + tf.matmul(u_u, l_v, transpose_a=True)
    u_u = factor * u_u
    k_u = factor * k_u - tf.matmul(s, u_u, transpose_a=True)
    return TangentVector(
        row_sparse.combined(u, l_v, k, v_v), core, row_sparse.combined(v, k_u, l, u_u)
    )


def core_in(tangent: TangentVector, old: Point, new: Point) -> tf.Tensor:
    """`U1^T A V1`, shape `(k, k)`, for A at `old` and the bases of `new`; see `transport`."""
    k, s, l = tangent
    v_v = tf.matmul(old.V, new.V, transpose_a=True)
    u_u = tf.matmul(old.U, new.U, transpose_a=True)
    l_v = tf.matmul(l, new.V, transpose_a=True) - tf.matmul(s, v_v)
    k_u = row_sparse.inner(k, new.U)
    return tf.matmul(k_u, v_v, transpose_a=True) + tf.matmul(u_u, l_v, transpose_a=True)
