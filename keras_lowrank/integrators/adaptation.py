"""A full step at the origin of a new chart: the rank that is asked for, and directions on trial."""

import tensorflow as tf

from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.complement import complement
from keras_lowrank.manifold.point import Point, diagonal

# Directions that are smaller than this share of the largest are not put on trial.
FAINT = 0.03


def adapted(integrator, chart, direction, policy):
    """W at the rank that the policy chooses, and what the integrator adds on trial.

    Args:
        integrator: `Integrator`.
        chart: `Chart`.
        direction: `TangentVector` of the last step, which new directions are taken from.
        policy: `Policy`.

    Returns:
        `(factors, scale)`, orthonormal and diagonal, with a scale of zero for what is on trial.
    """
    left, values, right = chart.diagonalized()
    if policy.keeps_rank:  # nothing is cut, and XLA knows all shapes ahead
        new = chart.rotated(left, values, right)
        return new, tf.linalg.diag_part(new.S)
    rank = kept = policy.rank(values, current=tf.size(values))
    tries = integrator.tries(rank) if policy.truncation.grows else None
    tried = 0
    if tries is not None:
        # The rank grows where what was on trial is worth it. Where it is not, it is no reason
        # either to keep what would be cut without it.
        active = tf.math.count_nonzero(chart.scale, dtype=tf.int32)
        alone = policy.rank(values[:active], current=active)
        rank = tf.where(rank > active, rank, alone)
        room = policy.room(rank, tf.minimum(*(tf.shape(one)[0] for one in chart.factors[::2])))
        tried = tf.minimum(tries, room)
        # What was on trial and is not kept goes on, but makes room for what is new.
        kept = rank + tf.minimum(tf.size(values) - rank, tried - tried // 4)
    new = chart.rotated(left[:, :kept], values[:kept], right[:, :kept])
    if tries is not None:
        more = rank + tried - kept
        new = tf.cond(more > 0, lambda: extended(new, direction, more), lambda: new)
    return new, frozen(tf.linalg.diag_part(new.S), rank)


def extended(factors, direction, count):
    """The same W with more columns: what a direction has most of, outside of its bases."""
    u, s, v = factors
    k, l = row_sparse.dense(direction.K), direction.L
    q, z = _main_part(k, u, count), _main_part(l, v, count)
    count = tf.minimum(tf.shape(q)[1], tf.shape(z)[1])
    # Once more, of columns of one size: what was faint is not orthonormal yet.
    q, z = (complement(x[:, :count], basis).formed(basis) for x, basis in ((q, u), (z, v)))
    count = tf.minimum(tf.shape(q)[1], tf.shape(z)[1])
    values = tf.pad(tf.linalg.diag_part(s), [[0, count]])
    bases = (tf.concat([u, q[:, :count]], axis=1), tf.concat([v, z[:, :count]], axis=1))
    return Point(bases[0], diagonal(values), bases[1])


def _main_part(block, basis, count):
    """The largest orthonormal columns of a block that a basis does not have, `count` at most.

    Faint ones are left out: they are rounding in part, and would learn little on trial.
    """
    found = complement(block, basis)
    sizes = tf.math.rsqrt(tf.reduce_sum(tf.square(found.whitening), axis=0))  # ascending
    clear = tf.math.count_nonzero(sizes >= FAINT * tf.reduce_max(sizes), dtype=tf.int32)
    return found.formed(basis)[:, ::-1][:, : tf.minimum(clear, count)]


def frozen(scale, active):
    """A scale of which only the first columns are not frozen."""
    return tf.where(
        tf.range(tf.size(scale)) < tf.cast(active, tf.int32), scale, tf.zeros_like(scale)
    )
