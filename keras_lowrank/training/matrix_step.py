"""What a training step does to one matrix: traced once for all layers that it treats alike."""

from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold import row_sparse
from keras_lowrank.manifold.complement import complement
from keras_lowrank.manifold.point import Factorization, diagonal
from keras_lowrank.manifold.tangent_vector import TangentVector, transport
from keras_lowrank.optimizers.rule import ACCUMULATED
from keras_lowrank.outlined import outlined
from keras_lowrank.training.faults import total

# The square of the tangent of the largest angle that a chart is used up to.
LARGEST_DEFECT = 0.25

# Directions that are smaller than this share of the largest are not put on trial.
FAINT = 0.03


class Numbers(NamedTuple):
    """What is common to all matrices of a step, scalar tensors.

    Attributes:
        learning_rate, number: as in `Rule.direction`.
        step_size: h.
        adapts: bool, whether the step is one that adapts ranks.
    """

    learning_rate: tf.Tensor
    number: tf.Tensor
    step_size: tf.Tensor
    adapts: tf.Tensor


class Matrix(NamedTuple):
    """All that training keeps for one low-rank matrix.

    Attributes:
        factors: `Factorization`.
        scale: tensor, shape `(r,)`, that of its `Chart`.
        slots: dict, what the rule of the optimizer keeps.
        check: scalar tensor, not finite where one of the values is not.
    """

    factors: Factorization
    scale: tf.Tensor
    slots: dict
    check: tf.Tensor

    @classmethod
    def of(cls, factors, slots):
        """A matrix after a full step: at the origin of its chart."""
        check = total([factors, slots])
        return cls(factors, tf.linalg.diag_part(factors.S), slots, check)

    def decayed(self, factor):
        """The same at `c W`, for a scalar tensor c or None for 1."""
        if factor is None:
            return self
        factors = self.factors._replace(S=factor * self.factors.S)
        return self._replace(factors=factors, scale=factor * self.scale)

    def with_slot(self, name, value):
        return self._replace(slots={**self.slots, name: value})


def advance(integrator, rule, matrix, gradient, policy, numbers):
    """One step of one matrix, with an integrator that adapts it every few steps.

    Args:
        integrator: `Integrator`.
        rule: `Rule` of the optimizer.
        matrix: `Matrix`.
        gradient: `TangentVector`.
        policy: `Policy`, who decides the rank.
        numbers: `Numbers`.

    Returns:
        `Matrix`.
    """
    chart = Chart(matrix.factors, matrix.scale)
    direction, slots = rule.direction(
        gradient, matrix.slots, chart, numbers.learning_rate, numbers.number
    )
    direction = chart.in_parts(direction.tangent)
    light = chart.step(direction, numbers.step_size)

    def stay():
        kept = {
            name: slot.scaled(rule.decay) if _is_carried(name, slot) else slot
            for name, slot in slots.items()
        }
        # What is not finite in a tangent vector has come into the factors.
        rest = [slot for name, slot in slots.items() if not _is_carried(name, slot)]
        return Matrix(
            light.factors, matrix.scale, kept, tf.cast(light.defect, tf.float32) + total(rest)
        )

    def adapt():
        there = Chart(light.factors, matrix.scale)
        factors, scale = adapted(integrator, there, direction, policy)
        new = Matrix.of(factors, carry(rule, slots, (there.U, there.V), factors))
        return new._replace(scale=scale)

    def far():
        old, fresh = (chart.U, chart.V), chart.refreshed()
        there = transport(direction, old, fresh)
        held = Held(policy, numbers.adapts)
        factors = integrator.move(fresh, there, numbers.step_size, held)
        new = Matrix.of(factors, carry(rule, slots, old, factors))
        return new._replace(scale=_frozen(new.scale, tf.math.count_nonzero(chart.scale)))

    def full():
        return tf.cond(near, lambda: tf.nest.flatten(adapt()), lambda: tf.nest.flatten(far()))

    near = light.defect <= LARGEST_DEFECT
    values = tf.cond(near & ~numbers.adapts, lambda: tf.nest.flatten(stay()), outlined(full))
    return tf.nest.pack_sequence_as(matrix._replace(slots=slots), values)


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
    (u, _, v), (left, values, right) = chart.factors, chart.diagonalized()
    if policy.keeps_rank:  # nothing is cut, and XLA knows all shapes ahead
        new = Factorization(tf.matmul(u, left), diagonal(values), tf.matmul(v, right))
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
        room = policy.room(rank, tf.minimum(tf.shape(u)[0], tf.shape(v)[0]))
        tried = tf.minimum(tries, room)
        # What was on trial and is not kept goes on, but makes room for what is new.
        kept = rank + tf.minimum(tf.size(values) - rank, tried - tried // 4)
    new = Factorization(
        tf.matmul(u, left[:, :kept]), diagonal(values[:kept]), tf.matmul(v, right[:, :kept])
    )
    if tries is not None:
        more = rank + tried - kept
        new = tf.cond(more > 0, lambda: extended(new, direction, more), lambda: new)
    return new, _frozen(tf.linalg.diag_part(new.S), rank)


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
    return Factorization(bases[0], diagonal(values), bases[1])


def _main_part(block, basis, count):
    """The largest orthonormal columns of a block that a basis does not have, `count` at most.

    Faint ones are left out: they are rounding in part, and would learn little on trial.
    """
    found = complement(block, basis)
    sizes = tf.math.rsqrt(tf.reduce_sum(tf.square(found.root), axis=0))  # ascending
    clear = tf.math.count_nonzero(sizes >= FAINT * tf.reduce_max(sizes), dtype=tf.int32)
    return found.formed(basis)[:, ::-1][:, : tf.minimum(clear, count)]


def _frozen(scale, active):
    """A scale of which only the first columns are not frozen."""
    return tf.where(
        tf.range(tf.size(scale)) < tf.cast(active, tf.int32), scale, tf.zeros_like(scale)
    )


class Held(NamedTuple):
    """A `Policy` that decides in the steps that adapt ranks; in others the rank stays."""

    policy: object
    adapts: tf.Tensor

    @property
    def keeps_rank(self):
        return self.policy.keeps_rank

    def rank(self, singular_values, current):
        if self.keeps_rank:  # the same number, but one that XLA knows ahead
            return current
        return tf.where(self.adapts, self.policy.rank(singular_values, current), current)


def carry(rule, slots, old, new):
    """What a rule keeps, with tangent vectors in the tangent space at another matrix."""
    return {
        name: transport(slot, old, new, rule.decay) if _is_carried(name, slot) else slot
        for name, slot in slots.items()
    }


def tangent_gradient(factors, scale, gradient, factor):
    """The `TangentVector` of the gradients of U, S and V; `factor`, a scalar or None."""
    return Chart(factors, scale).tangent(gradient, factor)


def _is_carried(name, slot):
    return isinstance(slot, TangentVector) and name != ACCUMULATED
