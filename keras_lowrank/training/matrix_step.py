"""What a training step does to one matrix: traced once for all layers that it treats alike."""

from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.integrators.adaptation import adapted, frozen
from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector, transport
from keras_lowrank.optimizers.rule import ACCUMULATED
from keras_lowrank.outlined import outlined
from keras_lowrank.ranks.truncation import Truncation
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

    def stay(moved):
        kept = {
            name: slot.scaled(rule.decay) if _is_carried(name, slot) else slot
            for name, slot in moved.slots.items()
        }
        # What is not finite in a tangent vector has come into the factors.
        rest = [slot for name, slot in slots.items() if not _is_carried(name, slot)]
        check = tf.cast(moved.defect, tf.float32) + total(rest)
        return MatrixState(moved.factors, moved.scale, kept, check)

    def recentered():
        """The same step from the origin of a chart at the present point: seldom is it long."""
        origin, scale = chart.origin()
        here = Chart(origin, scale)
        tangent = here.in_parts(transport(direction, (chart.U, chart.V), origin))
        carried = transport_state(slots, (chart.U, chart.V), origin)
        return _Moved(*here.step(tangent, numbers.step_size), scale, carried, tangent)

    def adapt(moved):
        there = Chart(moved.factors, moved.scale)
        factors, scale = adapted(integrator, there, moved.direction, policy)
        carried = transport_state(moved.slots, (there.U, there.V), factors, rule.decay)
        return MatrixState.of(factors, carried)._replace(scale=scale)

    def far():
        old, fresh = (chart.U, chart.V), chart.refreshed()
        there = transport(direction, old, fresh)
        held = _held(policy, numbers.adapts)
        factors = integrator.move(fresh, there, numbers.step_size, held)
        new = MatrixState.of(factors, transport_state(slots, old, factors, rule.decay))
        return new._replace(scale=frozen(new.scale, tf.math.count_nonzero(chart.scale)))

    def full():
        dense = light._replace(direction=direction.dense())
        moved = _cond(near, lambda: dense, recentered)
        return tf.nest.flatten(
            _cond(
                moved.defect <= LARGEST_DEFECT,
                lambda: _cond(numbers.adapts, lambda: adapt(moved), lambda: stay(moved)),
                far,
            )
        )

    light = _Moved(*chart.step(direction, numbers.step_size), matrix.scale, slots, direction)
    near = light.defect <= LARGEST_DEFECT
    values = tf.cond(near & ~numbers.adapts, lambda: tf.nest.flatten(stay(light)), outlined(full))
    return tf.nest.pack_sequence_as(matrix._replace(slots=slots), values)


class _Moved(NamedTuple):
    """A step inside of a chart.

    Attributes:
        factors, defect: as in `integrators.chart.Step`.
        scale: tensor, that of the chart.
        slots: dict, what the rule keeps, tangent vectors as parts in the chart.
        direction: `TangentVector` of the step, likewise.
    """

    factors: Point
    defect: tf.Tensor
    scale: tf.Tensor
    slots: dict
    direction: TangentVector


def _cond(condition, yes, no):
    """`tf.cond` of branches that return a structure of the same kind."""
    kind = []

    def flat(branch):
        structure = branch()
        kind.append(structure)
        return tf.nest.flatten(structure)

    values = tf.cond(condition, lambda: flat(yes), lambda: flat(no))
    return tf.nest.pack_sequence_as(kind[0], values)


class _Held(Truncation):
    """A truncation that decides in the steps that adapt ranks; in others the rank stays."""

    def __init__(self, truncation, adapts):
        self._truncation, self._adapts = truncation, adapts

    def rank(self, singular_values, current):
        return tf.where(self._adapts, self._truncation.rank(singular_values, current), current)


def _held(policy, adapts):
    """The policy for a step that may be one that adapts ranks."""
    if policy.keeps_rank:  # the same number, but one that XLA knows ahead
        return policy
    return policy._replace(truncation=_Held(policy.truncation, adapts))


def transport_state(slots, old, new, factor=1.0):
    """What a rule keeps, with tangent vectors, times a number, in the tangent space elsewhere."""
    return {
        name: transport(slot, old, new, factor) if _is_carried(name, slot) else slot
        for name, slot in slots.items()
    }


def tangent_gradient(factors, scale, gradient, factor):
    """The `TangentVector` of the gradients of U, S and V; `factor`, a scalar or None."""
    return Chart(factors, scale).tangent(gradient, factor)


def _is_carried(name, slot):
    return isinstance(slot, TangentVector) and name != ACCUMULATED
