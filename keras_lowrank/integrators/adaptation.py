"""A full step at the origin of a new chart: truncation to the chosen rank, and trial directions."""

import tensorflow as tf

from keras_lowrank.integrators.chart import Chart
from keras_lowrank.integrators.integrator import Integrator
from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.complement import complement
from keras_lowrank.manifold.point import Point, diagonal
from keras_lowrank.manifold.tangent_vector import TangentVector
from keras_lowrank.ranks.policy import Policy

# Directions below this share of the largest get no trial.
FAINT = 0.03


def adapted(
    integrator: Integrator, chart: Chart, direction: TangentVector, policy: Policy
) -> tuple[Point, tf.Tensor]:
    """W at the rank that the policy chooses, with the trial directions of the integrator.

    Args:
        integrator: `Integrator`.
        chart: `Chart`.
        direction: `TangentVector` of the last step, the source of trial directions.
        policy: `Policy`.

    Returns:
        `(point, scale)`: orthonormal bases, a diagonal core, and the scale of its chart, zero for
        trial directions.
    """
    left, values, right = chart.diagonalized()
    if policy.keeps_rank:  # no cut: XLA knows all shapes ahead
        new = chart.rotated(left, values, right)
        return new, tf.linalg.diag_part(new.S)
    rank = size = policy.rank(values, current=tf.size(values))
    tries = integrator.tries(rank) if policy.truncation.grows else None
    tried = 0
    if tries is not None:
        # The rank grows if trial directions have become large enough. If not, they must not raise
        # the rank that the active columns alone would get.
        active = tf.math.count_nonzero(chart.scale, dtype=tf.int32)
        alone = policy.rank(values[:active], current=active)
        rank = tf.where(rank > active, rank, alone)
        room = policy.room(rank, tf.minimum(*(tf.shape(one)[0] for one in chart.factors[::2])))
        tried = tf.minimum(tries, room)
        # Old trial directions go on, but a quarter of the places is for new ones.
        size = rank + tf.minimum(tf.size(values) - rank, tried - tried // 4)
    new = chart.rotated(left[:, :size], values[:size], right[:, :size])
    if tries is not None:
        more = rank + tried - size
        new = tf.cond(more > 0, lambda: extended(new, direction, more), lambda: new)
    return new, frozen(tf.linalg.diag_part(new.S), rank)


def extended(point: Point, direction: TangentVector, count: tf.Tensor) -> Point:
    """The same W with more columns: the largest parts of a direction outside of the bases."""
    u, s, v = point
    k, l = row_sparse.dense(direction.K), direction.L
    q, z = main_part(k, u, count), main_part(l, v, count)
    count = tf.minimum(tf.shape(q)[1], tf.shape(z)[1])
    # A second time, now with columns of one size: faint ones were not orthonormal yet.
    q, z = (complement(x[:, :count], basis).formed(basis) for x, basis in ((q, u), (z, v)))
    count = tf.minimum(tf.shape(q)[1], tf.shape(z)[1])
    values = tf.pad(tf.linalg.diag_part(s), [[0, count]])
    bases = (tf.concat([u, q[:, :count]], axis=1), tf.concat([v, z[:, :count]], axis=1))
    return Point(bases[0], diagonal(values), bases[1])


def main_part(block: tf.Tensor, basis: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """The largest orthonormal directions of a block outside of a basis, `count` at most.

    Faint ones are left out: they are partly rounding, and learn little.
    """
    found = complement(block, basis)
    sizes = tf.math.rsqrt(tf.reduce_sum(tf.square(found.whitening), axis=0))  # ascending
    clear = tf.math.count_nonzero(sizes >= FAINT * tf.reduce_max(sizes), dtype=tf.int32)
    return found.formed(basis)[:, ::-1][:, : tf.minimum(clear, count)]


def frozen(scale: tf.Tensor, active: tf.Tensor) -> tf.Tensor:
    """The scale with all but the first `active` columns frozen."""
    return tf.where(
        tf.range(tf.size(scale)) < tf.cast(active, tf.int32), scale, tf.zeros_like(scale)
    )
