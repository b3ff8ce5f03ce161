"""What a training step does to one matrix: traced once for all layers that it treats alike."""

from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.integrators.adaptation import adapted, frozen
from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector, transport
from keras_lowrank.optimizers.rule import ACCUMULATED
from keras_lowrank.outlined import outlined
from keras_lowrank.training.faults import total

# The square of the tangent of the largest angle that a chart is used up to.
LARGEST_DEFECT = 0.25


class StepScalars(NamedTuple):
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


class MatrixState(NamedTuple):
    """All that training keeps for one low-rank matrix.

    Attributes:
        factors: `Point`.
        scale: tensor, shape `(r,)`, that of its `Chart`.
        slots: dict, what the rule of the optimizer keeps.
        check: scalar tensor, not finite where one of the values is not.
    """

    factors: Point
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
        matrix: `MatrixState`.
        gradient: `TangentVector`.
        policy: `Policy`, who decides the rank.
        numbers: `StepScalars`.

    Returns:
        `MatrixState`.
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
        return MatrixState(
            light.factors, matrix.scale, kept, tf.cast(light.defect, tf.float32) + total(rest)
        )

    def adapt():
        there = Chart(light.factors, matrix.scale)
        factors, scale = adapted(integrator, there, direction, policy)
        new = MatrixState.of(factors, transport_state(rule, slots, (there.U, there.V), factors))
        return new._replace(scale=scale)

    def far():
        old, fresh = (chart.U, chart.V), chart.refreshed()
        there = transport(direction, old, fresh)
        held = Held(policy, numbers.adapts)
        factors = integrator.move(fresh, there, numbers.step_size, held)
        new = MatrixState.of(factors, transport_state(rule, slots, old, factors))
        return new._replace(scale=frozen(new.scale, tf.math.count_nonzero(chart.scale)))

    def full():
        return tf.cond(near, lambda: tf.nest.flatten(adapt()), lambda: tf.nest.flatten(far()))

    near = light.defect <= LARGEST_DEFECT
    values = tf.cond(near & ~numbers.adapts, lambda: tf.nest.flatten(stay()), outlined(full))
    return tf.nest.pack_sequence_as(matrix._replace(slots=slots), values)


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


def transport_state(rule, slots, old, new):
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
