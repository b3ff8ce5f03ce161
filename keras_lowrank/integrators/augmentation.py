"""Augmented bases, and the way back: stages 2 to 4 that the integrators share."""

from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.complement import Complement, complement, rotate
from keras_lowrank.manifold.decompositions import signed_svd
from keras_lowrank.manifold.orthonormalize import orthonormalized
from keras_lowrank.manifold.point import Point, diagonal


class Augmented(NamedTuple):
    """The bases `U^ = [U, Q]` and `V^ = [V, Z]`, kept as their parts.

    In them the matrix `U S V^T` is `[[S, 0], [0, 0]]`, so augmenting changes nothing yet.

    Attributes:
        factors: `Point` with the old U, S and V.
        left: `Complement` of the direction's K-part to U; its basis is Q.
        right: `Complement` of the direction's L-part to V; its basis is Z.
    """

    factors: Point
    left: Complement
    right: Complement


def augment(factors, direction, static=False):
    """Adds to the bases what the direction has outside of them.

    `span(U^)` is that of `[K1, U]` with `K1 = U S - h G V`, as the papers write it. `static` is
    that of `complement`.
    """
    return Augmented(
        factors,
        complement(row_sparse.dense(direction.K), factors.U, static),
        complement(direction.L, factors.V, static),
    )


def moved_core(augmented, step_size, normal_block=None):
    """Returns `S^ - h U^^T D V^` in the augmented bases.

    Three blocks of the product are in the direction's pair; the fourth, `Q^T D Z`, is zero unless
    it is given.

    Returns:
        Tensor of shape `(r + a, r + b)`.
    """
    (_, s, _), left, right = augmented
    h = tf.cast(step_size, s.dtype)
    if normal_block is None:
        normal_block = tf.zeros(
            [tf.shape(left.whitening)[1], tf.shape(right.whitening)[1]], s.dtype
        )
    top = [s - h * left.inside, -h * tf.transpose(right.outside)]
    bottom = [-h * left.outside, -h * normal_block]
    return tf.concat([tf.concat(top, axis=1), tf.concat(bottom, axis=1)], axis=0)


def truncate(augmented, core, policy):
    """Returns the best approximation of `U^ S^ V^^T` at the rank that the policy chooses.

    With `S^ = P diag(s) Q^T`: `U = U^ P_r`, `S = diag(s_r)`, `V = V^ Q_r`. Both `P` and `Q` are
    cut by columns, so the error is exactly the tail `||(s_{r+1}, ...)||_2`. The result is in a
    fixed gauge: S diagonal and descending, signs as in `signed_svd`.
    """
    (u, s, v), left, right = augmented
    p, values, q = signed_svd(core)
    rank = policy.rank(values, current=tf.shape(s)[0])
    return Point(
        *orthonormalized(
            rotate(u, left, p[:, :rank]),
            diagonal(values[:rank]),
            rotate(v, right, q[:, :rank]),
        )
    )
