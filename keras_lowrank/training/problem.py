"""A training step as an integrator with `adapt_every=1` sees it."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_lowrank.integrators.augmentation import Augmented
from keras_lowrank.integrators.chart import Chart
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector, core_in, transport
from keras_lowrank.optimizers.rule import Direction, Rule
from keras_lowrank.ranks.policy import Policy
from keras_lowrank.training.gradients import SecondPasses, product, scaled
from keras_lowrank.training.matrix_step import MatrixState, StepScalars


class StepProblem:
    """One step of all matrices of a model: the `Problem` of its integrator.

    Args:
        rules: list of the optimizer's `Rule`s. All lists here have one entry a matrix.
        matrices: list of `MatrixState`, decayed.
        gradients: list of `TangentVector`, clipped.
        policies: list of `Policy`.
        scalars: `StepScalars`.
        passes: `SecondPasses`.
        gradient_scales: list of scalars or None, the factors of the network's gradient before a
            rule sees it.
        replicated: bool, as in `Problem`.

    Attributes:
        slots: list of dict, the new state of the rules, after a call of `direction`.
    """

    def __init__(
        self,
        rules: list[Rule],
        matrices: list[MatrixState],
        gradients: list[TangentVector],
        policies: list[Policy],
        scalars: StepScalars,
        passes: SecondPasses,
        gradient_scales: list[Any],
        replicated: bool,
    ) -> None:
        self._rules, self._matrices, self._gradients = rules, matrices, gradients
        self._scalars, self._passes, self._gradient_scales = scalars, passes, gradient_scales
        self._directions: list[Direction] = []
        self.slots: list[dict[str, Any]] = []
        self.factors = [matrix.factors for matrix in matrices]
        self.policies, self.step_size, self.replicated = policies, scalars.step_size, replicated

    def direction(self) -> list[TangentVector]:
        rate, number = self._scalars.learning_rate, self._scalars.number
        results = [
            rule.direction(gradient, one.slots, Chart(one.factors, one.scale), rate, number)
            for rule, gradient, one in zip(self._rules, self._gradients, self._matrices)
        ]
        # A rule may scale each part on its own; this makes them the parts of one vector.
        self._directions = [
            direction._replace(tangent=transport(direction.tangent, point, point))
            for (direction, _), point in zip(results, self.factors)
        ]
        self.slots = [slots for _, slots in results]
        return [direction.tangent for direction in self._directions]

    def normal_blocks(self, augmented: list[Augmented]) -> list[tf.Tensor | None]:
        if all(direction.gradient_weight is None for direction in self._directions):
            return [None] * len(augmented)  # with updates that are not linear in the gradient
        gradients = self._passes.core_gradients(
            [
                bases.factors if direction.gradient_weight is None else _enlarged(*bases, direction)
                for bases, direction in zip(augmented, self._directions)
            ]
        )
        blocks = []
        for gradient, scale, direction in zip(gradients, self._gradient_scales, self._directions):
            rank, weight = tf.shape(direction.tangent.S)[0], direction.gradient_weight
            block = scaled(gradient[rank:, rank:], product(scale, weight))
            blocks.append(None if weight is None else block)
        return blocks

    def core_direction(self, factors: list[Point]) -> list[tf.Tensor]:
        """Replaces the gradient in D by that at the new matrices, if D is linear in it."""
        known = [d.gradient_weight is None or d.rows is not None for d in self._directions]
        new_gradients = [None] * len(known) if all(known) else self._passes.core_gradients(factors)
        cores = []
        for index, (direction, new) in enumerate(zip(self._directions, factors)):
            point = self.factors[index]
            core = core_in(direction.tangent, point, new)
            if not known[index]:
                weight = direction.gradient_weight
                scale = product(self._gradient_scales[index], weight)
                core += scaled(new_gradients[index], scale)
                core -= scaled(core_in(self._gradients[index], point, new), weight)
            cores.append(core)
        return cores


def _enlarged(point, left, right, direction):
    """The same W in the augmented bases; the last block of its core is the normal block."""
    q, z = left.formed(point.U), right.formed(point.V)
    if direction.rows is not None:
        q, z = direction.rows[:, None] * q, direction.columns[:, None] * z
    core = tf.pad(point.S, [[0, tf.shape(q)[1]], [0, tf.shape(z)[1]]])
    return tf.concat([point.U, q], axis=1), core, tf.concat([point.V, z], axis=1)
