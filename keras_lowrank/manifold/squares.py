r"""Mean squares of the entries of a tangent vector: the second moments of a coordinate-wise rule.

They belong to the coordinates that the bases give. With new bases `U1` and `V1`, `K1 = A V1`, and
an entry of it is `sum_j (V^T V1)_jk K_ij` plus what A has outside of V. A diagonal of second
moments says nothing about products of different entries; taken as uncorrelated,

    E[(K1)_ik^2] = sum_j (V^T V1)_jk^2 E[K_ij^2] + (1 - c_k) mean_j E[K_ij^2],

with `c_k = sum_j (V^T V1)_jk^2` the share of the new direction inside of V. A direction that was
never seen gets the mean of its row. For a rotation of the bases this keeps the sum of every row,
which no choice of bases changes: it is that of the squares of the row of `A V`.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.manifold.tangent_vector import Bases, TangentVector


class Squares(NamedTuple):
    """Mean squares of the entries of the parts of tangent vectors.

    Attributes:
        K: tensor, shape `(n, r)`.
        S: tensor, shape `(r, r)`.
        L: tensor, shape `(m, r)`.

    Example:

    >>> vector = TangentVector(K=tf.ones((4, 1)), S=tf.ones((1, 1)), L=tf.ones((3, 1)))
    >>> float(manifold.Squares(*vector).averaged(vector.scaled(3.0), 0.5).S[0, 0])
    5.0
    """

    K: tf.Tensor
    S: tf.Tensor
    L: tf.Tensor

    def averaged(self, vector: TangentVector, rate: float) -> Squares:
        """`rate` times these, and `1 - rate` times the squares of a vector."""
        parts = zip(self, vector)
        return Squares(*(rate * old + (1.0 - rate) * tf.square(new) for old, new in parts))

    def transported(self, old: Bases, new: Bases) -> Squares:
        """The mean squares in the coordinates of other bases.

        Args:
            old: `(U, V)` or `Point`.
            new: the same, of any rank.
        """
        return self._mixed(*(_shares(tf.matmul(old[i], new[i], transpose_a=True)) for i in (0, -1)))

    def spread(self, rank: tf.Tensor) -> Squares:
        """The mean squares in bases of this rank of which nothing is known."""
        unknown = tf.zeros([tf.shape(self.S)[0], rank], self.S.dtype)
        return self._mixed(_shares(unknown), _shares(unknown))

    def _mixed(self, left, right):
        core = tf.matmul(tf.matmul(left, self.S, transpose_a=True), right)
        return Squares(tf.matmul(self.K, right), core, tf.matmul(self.L, left))


def _shares(overlap):
    """The weights of the old coordinates in the new ones; the columns sum to 1."""
    inside = tf.square(overlap)
    outside = tf.maximum(1.0 - tf.reduce_sum(inside, axis=0), 0.0)
    return inside + outside / tf.cast(tf.shape(overlap)[0], overlap.dtype)
