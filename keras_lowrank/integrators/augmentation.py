"""Augmentation, core step and truncation: stages 2 to 4, which the integrators share."""

from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.complement import Complement, complement, rotate
from keras_lowrank.manifold.decompositions import signed_svd
from keras_lowrank.manifold.orthonormalize import orthonormalized
from keras_lowrank.manifold.point import Point, diagonal
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.ranks.policy import Policy


class Augmented(NamedTuple):
    """The bases `U^ = [U, Q]` and `V^ = [V, Z]`, in parts.

    In them the core of `U S V^T` is `[[S, 0], [0, 0]]`: augmentation does not change W.

    Attributes:
        factors: `Point` with the old U, S and V.
        left: `Complement` of the direction's K-part to U; its basis is Q.
        right: `Complement` of the direction's L-part to V; its basis is Z.

    Example:

    >>> point = Point(tf.eye(4, 1), tf.constant([[2.0]]), tf.eye(3, 1))
    >>> direction = TangentVector(tf.ones((4, 1)), tf.ones((1, 1)), tf.ones((3, 1)))
    >>> left = integrators.augment(point, direction).left
    >>> left.formed(point.U).shape  # Q, the column that is added to U
    TensorShape([4, 1])
    """

    factors: Point
    left: Complement
    right: Complement


def augment(factors: Point, direction: TangentVector, static: bool = False) -> Augmented:
    """Adds the parts of the direction outside of the bases: stage 2.

    `span(U^)` is that of `[K1, U]` with `K1 = U S - h G V`, as in the papers.

    Args:
        factors: `Point`.
        direction: `TangentVector` at it.
        static: as in `complement`.

    Example:

    >>> point = Point(tf.eye(4, 1), tf.constant([[2.0]]), tf.eye(3, 1))
    >>> direction = TangentVector(tf.ones((4, 1)), tf.ones((1, 1)), tf.ones((3, 1)))
    >>> augmented = integrators.augment(point, direction)
    >>> print(np.abs(augmented.left.formed(point.U)).round(2).T)  # Q, up to its sign
    [[0.   0.58 0.58 0.58]]
    """
    return Augmented(
        factors,
        complement(row_sparse.dense(direction.K), factors.U, static),
        complement(direction.L, factors.V, static),
    )


def moved_core(
    augmented: Augmented, step_size: tf.Tensor, normal_block: tf.Tensor | None = None
) -> tf.Tensor:
    """Returns `S^ - h U^^T D V^` in the augmented bases: stage 3.

    The direction gives three blocks of the product. The fourth, `Q^T D Z`, is the normal block.

    Args:
        augmented: `Augmented`.
        step_size: scalar tensor h.
        normal_block: tensor, shape `(a, b)`; None for zero.

    Returns:
        Tensor of shape `(r + a, r + b)`.

    Example:

    >>> point = Point(tf.eye(4, 1), tf.constant([[2.0]]), tf.eye(3, 1))
    >>> direction = TangentVector(tf.ones((4, 1)), tf.ones((1, 1)), tf.ones((3, 1)))
    >>> augmented = integrators.augment(point, direction)
    >>> print(np.abs(integrators.moved_core(augmented, step_size=0.1)).round(2))
    [[1.9  0.14]
     [0.17 0.  ]]
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


def truncate(augmented: Augmented, core: tf.Tensor, policy: Policy) -> Point:
    """Returns the best approximation of `U^ S^ V^^T` at the rank that the policy chooses: stage 4.

    With `S^ = P diag(s) Q^T`: `U = U^ P_r`, `S = diag(s_r)`, `V = V^ Q_r`. The error is exactly
    the tail `||(s_{r+1}, ...)||_2`. S is diagonal and descending, with signs as in `signed_svd`.

    Example:

    >>> point = Point(tf.eye(4, 1), tf.constant([[2.0]]), tf.eye(3, 1))
    >>> direction = TangentVector(tf.ones((4, 1)), tf.ones((1, 1)), tf.ones((3, 1)))
    >>> augmented = integrators.augment(point, direction)
    >>> core = integrators.moved_core(augmented, step_size=0.1)
    >>> integrators.truncate(augmented, core, Policy(Tolerance(0.1))).S.shape
    TensorShape([1, 1])
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
