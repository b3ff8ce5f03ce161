"""Augmented bases, and the way back: stages 2 to 4 that the integrators share."""

from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.factors import Factorization
from keras_lowrank.linalg import orthonormal_complement, rotate, signed_svd


class Augmented(NamedTuple):
    """The bases `U^ = [U, Q]` and `V^ = [V, Z]`, kept as their parts.

    In them the matrix `U S V^T` is `[[S, 0], [0, 0]]`, so augmenting changes nothing yet.

    Attributes:
        factors: `Factorization` with the old U, S and V.
        Q: tensor, what the direction adds to U, shape `(n, a)`, `0 <= a <= min(r, n - r)`.
        Z: tensor, what it adds to V, shape `(m, b)`.
    """

    factors: Factorization
    Q: tf.Tensor
    Z: tf.Tensor


def augment(factors, direction):
    """Adds to the bases what the displacement has outside of them.

    `span(U^)` is that of `[K1, U]` with `K1 = U S - h G V`, as the papers write it.
    """
    return Augmented(
        factors,
        orthonormal_complement(direction.K, factors.U),
        orthonormal_complement(direction.L, factors.V),
    )


def moved_core(augmented, direction, corner):
    """Returns `S^ - U^^T D V^` in the augmented bases.

    Three of its blocks are in the pair `direction`; `corner = Q^T D Z` is the fourth.

    Returns:
        Tensor of shape `(r + a, r + b)`.
    """
    (u, s, _), q, z = augmented
    k, l = direction  # noqa: E741 (the papers' letter)
    top = [s - tf.matmul(u, k, transpose_a=True), -tf.matmul(l, z, transpose_a=True)]
    bottom = [-tf.matmul(q, k, transpose_a=True), -corner]
    return tf.concat([tf.concat(top, axis=1), tf.concat(bottom, axis=1)], axis=0)


def truncate(augmented, core, policy):
    """Returns the best approximation of `U^ S^ V^^T` at the rank that the policy chooses.

    With `S^ = P diag(s) Q^T`: `U = U^ P_r`, `S = diag(s_r)`, `V = V^ Q_r`. Both `P` and `Q` are
    cut by columns, so the error is exactly the tail `||(s_{r+1}, ...)||_2`. The result is in a
    fixed gauge: S diagonal and descending, signs as in `signed_svd`.
    """
    (u, s, v), q, z = augmented
    left, values, right = signed_svd(core)
    rank = policy.rank(values, current=tf.shape(s)[0])
    return Factorization(
        rotate(u, q, left[:, :rank]),
        tf.linalg.diag(values[:rank]),
        rotate(v, z, right[:, :rank]),
    )
