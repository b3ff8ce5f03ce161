"""The training of a compiled model: its preparation, its steps, and the check after them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.layers.find_layers import find_built_layers
from keras_lowrank.layers.low_rank_layer import LowRankLayer
from keras_lowrank.manifold.point import Point
from keras_lowrank.optimizers.options import make_rule, rules_by_layer
from keras_lowrank.optimizers.rule import ACCUMULATED, TANGENT, Rule
from keras_lowrank.ranks.policy import Policy, plan
from keras_lowrank.ranks.truncation import KeepRank
from keras_lowrank.reporting.compression import count_others
from keras_lowrank.training.fault_check import FaultCheck
from keras_lowrank.training.faults import FaultRecord
from keras_lowrank.training.kinds import step_functions
from keras_lowrank.training.optimizer_state import OptimizerState
from keras_lowrank.training.passes import GivenGradients, Passes
from keras_lowrank.training.rank_warnings import warn_after_training, warn_before_training
from keras_lowrank.training.replicas import Replicas
from keras_lowrank.training.step import take_step
from keras_lowrank.training.symbolic_step import SymbolicStep


class Training:
    """The training of one `LowRankModel`, from one `compile` to the next.

    The model stores it in one attribute: all other names are free for subclasses.

    Args:
        model: `LowRankModel` that is being compiled.
        own_train_step: bool, whether a subclass overrides its `train_step`.

    Attributes:
        model: as given.
        rule: `Rule` of the optimizer, None until there is a low-rank layer to train.
        state: `OptimizerState`, None likewise.
        faults: `FaultRecord` of its steps.
        fault_check: `FaultCheck` of its executions.
        prepared: bool, whether all variables of a step exist.
        trained_paths: set of str, the paths of the layers that steps update.
    """

    def __init__(self, model: keras.Model, own_train_step: bool) -> None:
        self.model = model
        self._own_train_step = own_train_step
        self.rule: Rule | None = None
        self.state: OptimizerState | None = None
        self.faults = FaultRecord()
        self.trained_paths: set[str] = set()
        self.fault_check = FaultCheck(model, self.faults)
        self.prepared = self._executing = self._warned_of_ranks = False
        self._symbolic_step = SymbolicStep()

    @property
    def layers(self) -> dict[str, LowRankLayer]:
        """The trainable low-rank layers that are built, by path."""
        return {path: one for path, one in find_built_layers(self.model).items() if one.trainable}

    @property
    def other_variables(self) -> list[keras.Variable]:
        """The trainable variables that are not factors: the compiled optimizer updates them."""
        layers = find_built_layers(self.model).values()
        factors = {id(v) for layer in layers for v in layer.factors.variables}
        return [v for v in self.model.trainable_variables if id(v) not in factors]

    @functools.cached_property
    def stand_in(self) -> list[keras.Variable]:
        """One idle variable, for the optimizer of a model that has no other variables."""
        return [keras.Variable(0.0, name="stand_in")]

    def policies(
        self, layers: list[LowRankLayer], matrices: list[Point], step: tf.Tensor
    ) -> list[Policy]:
        """The truncation `Policy` of every low-rank layer for one step.

        Args:
            layers: list of trained `LowRankLayer`.
            matrices: list of their `Point`.
            step: scalar float tensor, the number of the step: 1, 2, ...
        """
        model = self.model
        if model.ranks_frozen or not model.integrator.adapts_rank:
            return [Policy(KeepRank())] * len(matrices)
        policies = [layer.policy for layer in layers]
        policies = [
            policy if policy.truncation else policy._replace(truncation=model.truncation)
            for policy in policies
        ]
        return plan(policies, matrices, step, count_others(model, layers))

    # Before the first step.

    def prepare_on(self, data: Any) -> None:
        """Creates all variables of a train step before its first trace.

        Args:
            data: a batch as `train_step` gets it, tensors or symbolic tensors; None does nothing.
        """
        if data is None or self.prepared or self._in_eager_steps:
            return
        if not self._own_train_step:
            self.prepare(keras.utils.unpack_x_y_sample_weight(data))
            return
        found, batch = self._symbolic_step.run(self.model, data)
        # Outside of a replica, variables that all replicas share have no gradients.
        shared = tf.distribute.has_strategy() and keras_internals.is_built(self.model)
        if batch is not None:
            self.prepare(batch)
        elif found or shared:
            self.build_optimizer()
        self._finish_preparation()

    def prepare(self, batch: tuple) -> None:
        """Creates all variables of a step on the batch `(x, y, sample_weight)`."""
        self._symbolic_step.reached(batch)
        if self.prepared:
            return
        if self._in_eager_steps:
            # There is no trace to save, and a layer may not support symbolic tensors.
            if not keras_internals.is_built(self.model):
                self.model(batch[0])
            self.build_optimizer()
        else:
            keras_internals.build_for_training(self.model, batch, self.build_optimizer)
        self._finish_preparation()

    def _finish_preparation(self):
        if not self.prepared and not self.model.ranks_frozen:
            warn_before_training(self.model)
        self.prepared = True

    @property
    def _in_eager_steps(self):
        return self.model.run_eagerly and not tf.distribute.has_strategy()

    def build_optimizer(self) -> None:
        """Creates the variables of the optimizer, and the state of the rules beside them."""
        layers, optimizer = self.layers, self.model.optimizer
        if optimizer is None:
            return
        if not optimizer.built:
            optimizer.build(self.other_variables or self.stand_in)
        if not layers:
            return
        self.rule = make_rule(optimizer, self.model.integrator)
        inner = keras_internals.inner_optimizer(optimizer)
        sums = {ACCUMULATED: TANGENT} if inner.gradient_accumulation_steps else {}
        rules = rules_by_layer(self.rule, layers)
        kinds = {path: {**rule.state, **sums} for path, rule in rules.items()}
        for path, layer in layers.items():
            step_functions(layer.factors).check(path, rules[path], self.model.integrator)
        with tf.init_scope():  # a step that is being traced needs its layers in a chart, too
            self.state = OptimizerState.of(inner, layers, kinds)
            self.verify()

    # Steps.

    @contextlib.contextmanager
    def during_fit(self, callbacks: Any) -> Iterator[None]:
        """Around a `fit`, with its argument `callbacks`."""
        adapts = self.model.integrator.adapts_rank and not self.model.ranks_frozen
        with self.fault_check.during_fit(callbacks):
            yield
        self._adapt_after_fit()
        if adapts and not self._warned_of_ranks:
            self._warned_of_ranks = True  # once for a loop that calls `fit`
            warn_after_training(self.model)

    @contextlib.contextmanager
    def execution(self) -> Iterator[None]:
        """Around the execution of a train function."""
        self.verify()
        self._executing = True
        try:
            yield
        finally:
            self._executing = False
        if self.model.run_eagerly or tf.config.functions_run_eagerly():
            self._own_factors()

    def step_on(self, batch: tuple, layers: dict[str, LowRankLayer]) -> Any:
        """Takes a step on `(x, y, sample_weight)` and returns the outputs of the model."""
        others = self.other_variables
        passes = Passes(self.model, batch, others, Replicas())
        take_step(self, layers, others, passes)
        return passes.y_pred

    def apply(
        self, grads: Iterable[Any], trainable_variables: Iterable[keras.Variable] | None = None
    ) -> None:
        """The `apply` of the compiled optimizer: factors take a step on the manifold.

        Args:
            grads: list of the ordinary gradients of the variables.
            trainable_variables: list of variables; None for all of the model.
        """
        model, gradients, variables = self.model, list(grads), trainable_variables
        if variables is None and len(gradients) == len(model.trainable_variables):
            variables = model.trainable_variables
        known = None if variables is None else list(variables)
        by_id = dict(zip(map(id, known or []), gradients))
        layers = {
            path: one
            for path, one in self.layers.items()
            if any(id(v) in by_id for v in one.factors.variables)
        }
        if not layers:
            return type(model.optimizer).apply(model.optimizer, gradients, known)
        self._symbolic_step.reached()
        if model.integrator.needs_second_pass:
            raise ValueError(
                "`adapt_every=1` of 'rank_adaptive' and 'fixed_rank' needs gradients at new bases, "
                "but `optimizer.apply` gets those at the present ones. Use a larger `adapt_every`, "
                "or integrator='parallel'. "
                f"Received: integrator={type(model.integrator).__name__}"
            )
        outside = not self._executing
        if outside and not tf.executing_eagerly():
            raise ValueError(_TRACED_LOOP.format(list(layers)))
        if self.state is None:
            self.build_optimizer()
        if outside:
            self.verify()
        factors = {id(v) for one in layers.values() for v in one.factors.variables}
        others = [v for v in known or [] if id(v) not in factors]
        take_step(self, layers, others, GivenGradients(by_id, others))
        if outside:
            self._own_factors()
            self.fault_check.check({})

    def mark_unverified(self) -> None:
        """Makes the next execution check all factors."""
        if self.state is not None:
            self.state.mark_unverified()

    def verify(self) -> None:
        """Moves layers whose factors someone else has assigned to the origin of a chart."""
        if self.state is not None:
            self.state.verify(at_origin=self.model.integrator.adapt_every == 1)

    def _own_factors(self):
        # In eager steps the host has seen the step itself assign the factors.
        for layer in self.layers.values():
            layer.factors.set_owner(self.state)

    def _adapt_after_fit(self):
        """Adapts bases and ranks once more, as the last step may have ended inside a chart."""
        state, model = self.state, self.model
        if state is None or model.integrator.adapt_every == 1:
            return
        layers = {p: one for p, one in find_built_layers(model).items() if state.holds(p)}
        if self._own_train_step:  # it may train some layers with another optimizer
            layers = {path: one for path, one in layers.items() if path in self.trained_paths}
        step = tf.cast(model.optimizer.iterations, tf.float32)
        points = [layer.factors.read() for layer in layers.values()]
        policies = self.policies(list(layers.values()), points, step)
        for (path, layer), policy in zip(layers.items(), policies):
            if layer.factors.is_owned_by(state):  # unless a callback has assigned other weights
                state.recenter(path, policy)


_TRACED_LOOP = (
    "The compiled optimizer of a `LowRankModel` moves U, S and V on the manifold in `fit`, "
    "`train_on_batch` and eager loops. A traced loop cannot tell whether someone else has assigned "
    "them. Make it the `train_step` of a subclass and call `model.train_on_batch`, or use another "
    "optimizer, which trains them as ordinary weights at their present rank. Received: gradients "
    "of the layers {}"
)
