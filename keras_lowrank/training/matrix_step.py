"""The step of one matrix, traced once for all layers of a kind."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from keras_lowrank.integrators.adaptation import adapted, frozen
from keras_lowrank.integrators.chart import Chart
from keras_lowrank.integrators.integrator import Integrator
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.squares import Squares
from keras_lowrank.manifold.tangent_vector import Bases, TangentVector, transport
from keras_lowrank.optimizers.rule import ACCUMULATED, Rule
from keras_lowrank.outlined import outlined
from keras_lowrank.ranks.policy import Policy
from keras_lowrank.ranks.truncation import Truncation
from keras_lowrank.training.faults import total

# The limit of a chart: the squared tangent of the largest angle.
LARGEST_DEFECT = 0.25


def check(path: str, rule: Rule, integrator: Integrator) -> None:
    """Raises ValueError if the rule or the integrator cannot step the kernel: all can."""


class StepScalars(NamedTuple):
    """Scalar tensors that all matrices of a step share.

    Attributes:
        learning_rate, number: `learning_rate` and `step` of `Rule.direction`.
        step_size: h.
        adapts: bool, whether the step adapts ranks.
    """

    learning_rate: tf.Tensor
    number: tf.Tensor
    step_size: tf.Tensor
    adapts: tf.Tensor


class MatrixState(NamedTuple):
    """The training state of one low-rank matrix.

    Attributes:
        factors: `Point`.
        scale: tensor, shape `(r,)`, the scale of its `Chart`.
        slots: dict, the state of its `Rule`.
        check: scalar tensor, not finite if one of the values is not.
    """

    factors: Point
    scale: tf.Tensor
    slots: dict[str, Any]
    check: tf.Tensor

    @classmethod
    def of(cls, factors: Point, slots: dict[str, Any]) -> MatrixState:
        """A matrix after a full step, at the origin of its chart."""
        check = total([factors, slots])
        return cls(factors, origin_scale(factors), slots, check)

    def decayed(self, factor: tf.Tensor | None) -> MatrixState:
        """The state at `c W`, for a scalar tensor c or None for 1."""
        if factor is None:
            return self
        factors = self.factors._replace(S=factor * self.factors.S)
        return self._replace(factors=factors, scale=factor * self.scale)

    def with_slot(self, name: str, value: Any) -> MatrixState:
        return self._replace(slots={**self.slots, name: value})


def advance(
    integrator: Integrator,
    rule: Rule,
    matrix: MatrixState,
    gradient: TangentVector,
    policy: Policy,
    scalars: StepScalars,
) -> MatrixState:
    """One step of one matrix, with an integrator that adapts it every few steps.

    Args:
        integrator: `Integrator`.
        rule: `Rule` of the optimizer.
        matrix: `MatrixState`.
        gradient: `TangentVector`.
        policy: `Policy`, which chooses the rank.
        scalars: `StepScalars`.
    """
    chart = Chart(matrix.factors, matrix.scale)
    direction, slots = rule.direction(
        gradient, matrix.slots, chart, scalars.learning_rate, scalars.number
    )
    tangent = chart.in_parts(direction.tangent)

    def stay(result):
        new_slots = {
            name: slot.scaled(rule.decay) if is_transported(name, slot) else slot
            for name, slot in result.slots.items()
        }
        # A tangent vector that is not finite shows in the factors.
        rest = [slot for name, slot in slots.items() if not is_transported(name, slot)]
        check = tf.cast(result.defect, tf.float32) + total(rest)
        return MatrixState(result.factors, result.scale, new_slots, check)

    def recentered():
        """The same step from the origin of a chart at the present point, where it is shorter."""
        origin, scale = chart.origin()
        here = Chart(origin, scale)
        old = (chart.U, chart.V)
        here_tangent = here.from_pair(transport(tangent, old, origin))
        here_slots = transport_state(slots, old, origin, chart=here)
        step = here.step(here_tangent, scalars.step_size)
        return _StepResult(*step, scale, here_slots, here_tangent)

    def adapt(result):
        there = Chart(result.factors, result.scale)
        factors, scale = adapted(integrator, there, result.direction, policy)
        return arrived(result.slots, there, factors, scale)

    def leave_chart():
        old, point = (chart.U, chart.V), chart.refreshed()
        there = transport(tangent, old, point)
        factors = integrator.move(point, there, scalars.step_size, limited)
        scale = frozen(origin_scale(factors), tf.math.count_nonzero(chart.scale))
        return arrived(slots, chart, factors, scale)

    def arrived(slots, old, factors, scale):
        """The state at the origin of a new chart."""
        new_slots = transport_state(
            slots, (old.U, old.V), factors, rule.decay, chart=Chart(factors, scale)
        )
        return MatrixState.of(factors, new_slots)._replace(scale=scale)

    def full():
        dense = cheap._replace(direction=tangent.dense())
        result = _cond(inside, lambda: dense, recentered)
        return tf.nest.flatten(
            _cond(
                result.defect <= LARGEST_DEFECT,
                lambda: _cond(scalars.adapts, lambda: adapt(result), lambda: stay(result)),
                leave_chart,
            )
        )

    limited = policy
    if not policy.keeps_rank:
        truncation = _OnlyWhenAdapting(policy.truncation, scalars.adapts)
        limited = policy._replace(truncation=truncation)
    cheap = _StepResult(*chart.step(tangent, scalars.step_size), matrix.scale, slots, tangent)
    inside = cheap.defect <= LARGEST_DEFECT
    values = tf.cond(inside & ~scalars.adapts, lambda: tf.nest.flatten(stay(cheap)), outlined(full))
    return tf.nest.pack_sequence_as(matrix._replace(slots=slots), values)


class _StepResult(NamedTuple):
    """A step inside a chart.

    Attributes:
        factors, defect: as in `integrators.chart.Step`.
        scale: tensor, the scale of the chart.
        slots: dict, the state of the rule, with tangent vectors as parts in the chart.
        direction: `TangentVector` of the step, as parts in the chart.
    """

    factors: Point
    defect: tf.Tensor
    scale: tf.Tensor
    slots: dict
    direction: TangentVector


def _cond(condition, yes, no):
    """`tf.cond` of branches that return nested structures."""
    structures = []

    def flat(branch):
        structures.append(branch())
        return tf.nest.flatten(structures[-1])

    values = tf.cond(condition, lambda: flat(yes), lambda: flat(no))
    return tf.nest.pack_sequence_as(structures[0], values)


class _OnlyWhenAdapting(Truncation):
    """A truncation in steps that adapt ranks; in others the rank stays."""

    def __init__(self, truncation, adapts):
        self._truncation, self._adapts = truncation, adapts
        self.grows = truncation.grows

    def rank(self, singular_values, current):
        rank = self._truncation.rank(singular_values, current)
        return tf.where(self._adapts, rank, current)


def is_origin(point: Point) -> tf.Tensor:
    """Whether a point is the origin of a chart, without frozen columns."""
    scale = origin_scale(point)
    # A scale of zero would freeze the column.
    return tf.reduce_all(scale > 0.0) & Chart(point, scale).holds()[1]


def origin(point: Point, least: float) -> tuple[Point, tf.Tensor]:
    """A point with no singular value below `least`, and the scale of the chart there."""
    values = origin_scale(point)
    scale = tf.maximum(values, tf.cast(least, values.dtype))
    if tf.reduce_any(scale > values):
        point = point._replace(S=tf.linalg.diag(scale))
    return point, scale


def origin_scale(point: Point) -> tf.Tensor:
    """The scale of the chart at its origin."""
    return tf.linalg.diag_part(point.S)


def position(matrix: MatrixState) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether a matrix is inside its chart, and whether at its origin."""
    return Chart(matrix.factors, matrix.scale).holds()


def recentered(matrix: MatrixState, policy: Policy) -> MatrixState | None:
    """The matrix at the origin of a chart, at the rank that `policy` chooses; None if it is so."""
    chart = Chart(matrix.factors, matrix.scale)
    if chart.holds()[1] and tf.reduce_all(chart.active > 0.0):
        return None  # the last step was a full one, or there was none
    left, values, right = chart.diagonalized()
    rank = policy.rank(values, current=tf.size(values))
    new = chart.rotated(left[:, :rank], values[:rank], right[:, :rank])
    slots = {
        name: _transported(slot, (chart.U, chart.V), new) for name, slot in matrix.slots.items()
    }
    return MatrixState.of(new, slots)


def transport_state(
    slots: dict[str, Any],
    old: Bases,
    new: Bases,
    factor: float = 1.0,
    chart: Chart | None = None,
) -> dict[str, Any]:
    """The state of a rule, its tangent vectors transported and multiplied with `factor`; as parts
    in a chart with the new bases, if one is given.
    """
    return {
        name: slot if name == ACCUMULATED else _transported(slot, old, new, factor, chart)
        for name, slot in slots.items()
    }


def _transported(slot, old, new, factor=1.0, chart=None):
    if isinstance(slot, TangentVector):
        pair = transport(slot, old, new, factor)
        return pair if chart is None else chart.from_pair(pair)
    return slot.transported(old, new) if isinstance(slot, Squares) else slot


def tangent_gradient(
    factors: Point, scale: tf.Tensor, gradient: tuple, factor: tf.Tensor | None
) -> TangentVector:
    """The tangent gradient from the gradients of U, S and V; `factor` is a scalar or None."""
    return Chart(factors, scale).tangent(gradient, factor)


def is_transported(name: str, slot: Any) -> bool:
    """Whether a slot is a tangent vector that follows the matrix."""
    return isinstance(slot, TangentVector) and name != ACCUMULATED
