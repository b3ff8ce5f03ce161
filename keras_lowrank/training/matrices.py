"""The step of all low-rank matrices of a model, from gradients to new factors."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.integrators.trace_once import trace_once
from keras_lowrank.layers.low_rank_layer import LowRankLayer
from keras_lowrank.manifold.tangent_vector import zero_vector
from keras_lowrank.optimizers.options import clip_factors, weight_decay
from keras_lowrank.optimizers.rule import ACCUMULATED, Rule
from keras_lowrank.training import matrix_step
from keras_lowrank.training.gradients import SecondPasses, product, scaled
from keras_lowrank.training.kinds import step_functions
from keras_lowrank.training.matrix_step import MatrixState, StepScalars, transport_state
from keras_lowrank.training.problem import StepProblem

if TYPE_CHECKING:
    from keras_lowrank.training.training import Training


class MatricesStep:
    """A step of all low-rank matrices of a model.

    Args:
        training: `Training` of the model.
        rules: dict from path to `Rule`.
        layers: dict from path to `LowRankLayer`, in the same order.
        completed: integer scalar tensor, the number of completed steps.

    Attributes:
        loss_scale: scalar tensor, the factor of the loss whose gradients are given.
        decay_factors: list of scalar tensors or None, the factors of weight decay.
        checks: dict from a callable `(step) -> Exception` to a scalar bool tensor, the
            `Truncation.checks` of all matrices.
    """

    def __init__(
        self,
        training: Training,
        rules: dict[str, Rule],
        layers: dict[str, LowRankLayer],
        completed: tf.Tensor,
    ) -> None:
        assert training.rule is not None and training.state is not None
        optimizer = training.model.optimizer
        self._integrator, self._rules = training.model.integrator, list(rules.values())
        self._optimizer = keras_internals.inner_optimizer(optimizer)
        rate = tf.convert_to_tensor(optimizer.learning_rate)
        rate = rate if rate.dtype == tf.float64 else tf.cast(rate, tf.float32)
        number = tf.cast(completed, tf.float32) + 1.0
        self._scalars = StepScalars(
            rate,
            number,
            tf.convert_to_tensor(training.rule.step_size(rate, number)),
            tf.equal((completed + 1) % self._integrator.adapt_every, 0),
        )
        self.loss_scale = optimizer.scale_loss(tf.ones([], tf.float32))
        scales = self._optimizer is not optimizer or self._optimizer.loss_scale_factor
        self._unscaling = 1.0 / self.loss_scale if scales else None
        decays = [weight_decay(rule, layers[path]) for path, rule in rules.items()]
        self.decay_factors = [
            # Decoupled, as in Keras.
            tf.cast(1.0 - decay * rate, layer.S.dtype) if decay else None
            for decay, layer in zip(decays, layers.values())
        ]
        self._functions = [step_functions(layer.factors) for layer in layers.values()]
        self._before = [training.state.read(path) for path in layers]
        self._decayed = [one.decayed(f) for one, f in zip(self._before, self.decay_factors)]
        points = [one.factors for one in self._decayed]
        self._policies = training.policies(list(layers.values()), points, number)
        self.checks = {}
        for policy in self._policies:
            self.checks.update(policy.truncation.checks())

    def move(
        self, passes: SecondPasses, replicated: bool
    ) -> tuple[list[MatrixState], tf.Tensor | None]:
        """The matrices after the step, and the factor of a global norm for all other gradients.

        Args:
            passes: `SecondPasses`.
            replicated: bool, as in `Problem`.

        Returns:
            `(list of MatrixState, scalar tensor or None)`.
        """
        first = passes.results[0]
        gradients = {one: trace_once(one.tangent_gradient) for one in self._functions}
        tangents = [
            gradients[functions](one.factors, one.scale, kernel, self._unscaling)
            for functions, one, kernel in zip(self._functions, self._before, first.kernels)
        ]
        if self._optimizer.gradient_accumulation_steps:
            return self._accumulate(tangents, passes, replicated), None
        return self._advance(tangents, passes, replicated)

    def _advance(self, tangents, passes, replicated):
        """A step from tangent gradients; returns what `move` does."""
        others = [scaled(gradient, self._unscaling) for gradient in passes.results[0].others]
        clips, common = clip_factors(self._optimizer, tangents, others)
        clipped = [
            tangent if clip is None else tangent.scaled(clip)
            for tangent, clip in zip(tangents, clips)
        ]
        in_one = self._integrator.adapt_every == 1
        whole = [in_one and functions is matrix_step for functions in self._functions]
        steps: dict[Any, Any] = {}
        new: list[Any] = []
        for index, (rule, functions) in enumerate(zip(self._rules, self._functions)):
            if whole[index]:
                new.append(None)
                continue
            if (rule, functions) not in steps:
                steps[rule, functions] = trace_once(self._one_step(rule, functions))
            parts = self._decayed[index], clipped[index], self._policies[index]
            new.append(steps[rule, functions](*parts, self._scalars))
        if any(whole):
            scales = [product(self._unscaling, clip) for clip in clips]
            taken = self._whole_step(whole, clipped, scales, passes, replicated)
            new = [next(taken) if one is None else one for one in new]
        return new, common

    def _whole_step(self, chosen, gradients, scales, passes, replicated):
        """Yields the states of some matrices after a step of the integrator with all of them."""
        lists = self._rules, self._decayed, gradients, self._policies, scales
        rules, decayed, *rest = (list(itertools.compress(one, chosen)) for one in lists)
        gradients, policies, scales = rest
        problem = StepProblem(
            rules, decayed, gradients, policies, self._scalars, passes, scales, replicated
        )
        new = self._integrator.step(problem)
        for rule, old, slots, factors in zip(rules, decayed, problem.slots, new):
            carried = transport_state(slots, old.factors, factors, rule.decay)
            yield MatrixState.of(factors, carried)

    def _one_step(self, rule, functions):
        return lambda *parts: functions.advance(self._integrator, rule, *parts)

    def _accumulate(self, tangents, passes, replicated):
        """Adds the gradients to their sum, and takes a step from the mean once it is complete."""
        steps, before = self._optimizer.gradient_accumulation_steps, self._decayed
        sums = [t.plus(one.slots[ACCUMULATED]) for t, one in zip(tangents, before)]

        def advance_all():
            means = [total.scaled(1.0 / steps) for total in sums]
            new, _ = self._advance(means, passes, replicated)
            zeros = [zero_vector(one.factors, type(total)) for one, total in zip(new, sums)]
            new = [one.with_slot(ACCUMULATED, zero) for one, zero in zip(new, zeros)]
            return tf.nest.flatten(new)

        def wait():
            new = [one.with_slot(ACCUMULATED, total) for one, total in zip(before, sums)]
            return tf.nest.flatten(new)

        complete = keras_internals.completes_accumulation(self._optimizer)
        return tf.nest.pack_sequence_as(before, tf.cond(complete, advance_all, wait))
