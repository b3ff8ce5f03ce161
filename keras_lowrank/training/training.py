"""What a compiled model keeps for training, beside what Keras keeps, and how it gets ready."""

import contextlib
import functools

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.layers.find_layers import find_built_layers
from keras_lowrank.optimizers.options import make_rule, rules_by_layer
from keras_lowrank.optimizers.rule import ACCUMULATED, TANGENT
from keras_lowrank.ranks.truncation import KeepRank, Policy, plan
from keras_lowrank.reporting.compression import count_others
from keras_lowrank.training.faults import FaultRecord
from keras_lowrank.training.optimizer_state import OptimizerState
from keras_lowrank.training.passes import GivenGradients, Passes
from keras_lowrank.training.rank_warnings import warn_after_training, warn_before_training
from keras_lowrank.training.replicas import Replicas
from keras_lowrank.training.step import take_step


class Training:
    """The training of one `LowRankModel`, from one `compile` to the next.

    The model holds it in one attribute: every other name is free for a subclass.

    Args:
        model: `LowRankModel` that is being compiled.
        own_train_step: bool, whether its `train_step` is that of a subclass.

    Attributes:
        model: as given.
        rule: `Rule` of the optimizer, None until there is a low-rank layer to train.
        state: `OptimizerState`, None likewise.
        faults: `FaultRecord`.
        prepared: bool, whether all variables are there that a step needs.
        stops_on_nan: bool, whether a callback ends the present `fit` at a NaN.
        looked: what `faults` held after the last execution of a `fit`, not waited for yet.
        moved: set of str, the paths of the layers that a step moves.
    """

    def __init__(self, model, own_train_step):
        self.model = model
        self._own_train_step = own_train_step
        self.rule, self.state, self.faults = None, None, FaultRecord()
        self.stops_on_nan, self.looked, self.moved = False, None, set()
        self.prepared = self._runs = self._in_fit = self._told_of_ranks = False
        self._on_arrival = None

    @property
    def layers(self):
        """The trainable low-rank layers that are built, by path."""
        return {path: one for path, one in find_built_layers(self.model).items() if one.trainable}

    @property
    def other_variables(self):
        """The trainable variables that are no factors: those the compiled optimizer updates."""
        layers = find_built_layers(self.model).values()
        factors = {id(v) for layer in layers for v in layer.factors.variables}
        return [v for v in self.model.trainable_variables if id(v) not in factors]

    @functools.cached_property
    def stand_in(self):
        """What the optimizer updates in a model that has no other variables: one idle number."""
        return [keras.Variable(0.0, name="stand_in")]

    def policies(self, layers, matrices, step):
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

    def prepare_on(self, data):
        """Makes every variable that a train step needs, ahead of its first trace.

        Args:
            data: a batch as `train_step` gets it, tensors or symbolic tensors; None for nothing.
        """
        if data is None or self.prepared or self._in_eager_steps:
            return
        if not self._own_train_step:
            self.prepare(keras.utils.unpack_x_y_sample_weight(data))
            return
        arrival = self._arrival(data)
        if arrival is not None:
            arrival()
        self._ready()

    def prepare(self, batch):
        """The same, given what the step is taken on: `(x, y, sample_weight)`."""
        if self._on_arrival is not None:
            self._on_arrival(batch)
        if self.prepared:
            return
        if self._in_eager_steps:
            # No trace to save, and a layer may not bear symbolic tensors.
            if not keras_internals.is_built(self.model):
                self.model(batch[0])
            self.build_optimizer()
        else:
            keras_internals.build_for_training(self.model, batch, self.build_optimizer)
        self._ready()

    def _ready(self):
        if not self.prepared and not self.model.ranks_frozen:
            warn_before_training(self.model)
        self.prepared = True

    @property
    def _in_eager_steps(self):
        return self.model.run_eagerly and not tf.distribute.has_strategy()

    def _arrival(self, data):
        """What is to be prepared for where a `train_step` of the user's own comes to a step.

        It may crop, mix or encode what it is given before it calls `super().train_step`, or take
        gradients by itself. So it is run symbolically, up to there; None where it never comes.
        """

        def stop(batch=None):
            spec = None if batch is None else keras_internals.symbolic(batch)
            raise _Arrival(self.build_optimizer if batch is None else lambda: self.prepare(spec))

        self._on_arrival = stop
        try:
            for _ in range(2):  # what is made in a run has no gradients before the next
                try:
                    keras_internals.run_symbolically(self.model.train_step, data)
                except _Arrival as arrival:
                    return arrival.prepare
                except Exception:  # it bears no symbolic tensors, or is wrong: its trace will tell
                    continue
        finally:
            self._on_arrival = None
        # Outside of a replica there are no gradients of variables that all replicas have.
        by_itself = tf.distribute.has_strategy() and keras_internals.is_built(self.model)
        return self.build_optimizer if by_itself else None

    def build_optimizer(self):
        """Makes the variables of the optimizer, of which the factors have their own kind."""
        layers, optimizer = self.layers, self.model.optimizer
        if optimizer is None:
            return
        if not optimizer.built:
            optimizer.build(self.other_variables or self.stand_in)
        if not layers:
            return
        # What the optimizer keeps for the factors, beside what it keeps for all else.
        self.rule = make_rule(optimizer, self.model.integrator)
        inner = keras_internals.inner_optimizer(optimizer)
        sums = {ACCUMULATED: TANGENT} if inner.gradient_accumulation_steps else {}
        rules = rules_by_layer(self.rule, layers)
        kinds = {path: {**rule.state, **sums} for path, rule in rules.items()}
        made = [path for path, layer in layers.items() if layer.S.is_made_in_trace]
        if made:
            raise ValueError(_MADE_IN_TRACE.format(made))
        with tf.init_scope():  # a step that is being traced finds its layers in a chart, too
            self.state = OptimizerState.of(inner, layers, kinds)
            self.verify()

    # Steps.

    @contextlib.contextmanager
    def seen_by(self, callbacks):
        """Around a `fit` with these callbacks, as it is given them."""
        found = keras.tree.flatten(getattr(callbacks, "callbacks", callbacks))
        self.stops_on_nan = any(isinstance(c, keras.callbacks.TerminateOnNaN) for c in found)
        adapts = self.model.integrator.adapts_rank and not self.model.ranks_frozen
        self._in_fit = True
        try:
            yield
            self.check_last()
        finally:
            self.stops_on_nan, self.looked, self._in_fit = False, None, False
        self._finish()
        if adapts and not self._told_of_ranks:
            self._told_of_ranks = True  # a loop of calls of `fit` hears of it once
            warn_after_training(self.model)

    @contextlib.contextmanager
    def execution(self):
        """Around the execution of a train function."""
        self.verify()
        self._runs = True
        try:
            yield
        finally:
            self._runs = False
        if self.model.run_eagerly or tf.config.functions_run_eagerly():
            self._take()

    def step_on(self, batch, layers):
        """Takes a step on `(x, y, sample_weight)` and returns the outputs of the model."""
        others = self.other_variables
        passes = Passes(self.model, batch, others, Replicas())
        take_step(self, layers, others, passes)
        return passes.y_pred

    def apply(self, grads, trainable_variables=None):
        """What `apply` of the compiled optimizer is: factors take a step on the manifold.

        Args:
            grads: list of the gradients of the variables, of which factors have ordinary ones.
            trainable_variables: list of variables; None for all of the model.
        """
        model, gradients, variables = self.model, list(grads), trainable_variables
        if variables is None and len(gradients) == len(model.trainable_variables):
            variables = model.trainable_variables
        known = variables if variables is None else list(variables)
        by_id = dict(zip(map(id, known or []), gradients))
        layers = {
            path: one
            for path, one in self.layers.items()
            if any(id(v) in by_id for v in one.factors.variables)
        }
        if not layers:
            return type(model.optimizer).apply(model.optimizer, gradients, known)
        if self._on_arrival is not None:
            self._on_arrival()
        if model.integrator.needs_second_pass:
            raise ValueError(
                "`adapt_every=1` of 'rank_adaptive' and 'fixed_rank' takes gradients at bases that "
                "are known in the midst of a step, and `optimizer.apply` is given those at the "
                "present ones. Use a larger `adapt_every`, or integrator='parallel'. "
                f"Received: integrator={type(model.integrator).__name__}"
            )
        outside = not self._runs
        if outside and not tf.executing_eagerly():
            raise ValueError(_TRACED_LOOP.format(list(layers)))
        if self.state is None:
            self.build_optimizer()
        if outside:
            self.verify()
        factors = {id(v) for one in layers.values() for v in one.factors.variables}
        others = [v for v in known if id(v) not in factors]
        take_step(self, layers, others, GivenGradients(by_id, others))
        if outside:
            self._take()
            self.check()

    def check_execution(self, logs):
        """The same as `check`, in `fit` one execution late, so that the host waits for no step."""
        if not self._in_fit or self.stops_on_nan or self.model.run_eagerly:
            return self.check(logs)
        before, self.looked = self.looked, self.faults.look()
        return logs if before is None else self.check(logs, before)

    def check_last(self):
        """Looks at the last execution of a `fit`, which no other has followed yet."""
        last, self.looked = self.looked, None
        if last is not None:
            self.check(looked=last)

    def check(self, logs=None, looked=None):
        """Raises the error that the last execution has recorded, where there is one.

        With `keras.callbacks.TerminateOnNaN` in `fit`, a value that is not finite is no error:
        the callback is to see it in the loss, and stops the training as in Keras.

        Args:
            logs: dict, what the execution has returned.
            looked: what `FaultRecord.look` returned after an earlier execution; None for the last.

        Returns:
            dict, what the callbacks see of it.
        """
        error = self.faults.taken(looked)
        if error is None:
            return logs
        if not (self.stops_on_nan and isinstance(error, FloatingPointError)):
            raise error
        keras_internals.spoil_loss(self.model)
        return {**logs, "loss": np.float32("nan")}

    def mark_unverified(self):
        """Has the next execution look at all factors, whoever has assigned them."""
        if self.state is not None:
            self.state.mark_unverified()

    def verify(self):
        """Puts the layers whose factors someone else has assigned at the origin of a chart."""
        if self.state is not None:
            self.state.verify(at_origin=self.model.integrator.adapt_every == 1)

    def _take(self):
        # The step itself has assigned the factors where the host sees it.
        for layer in self.layers.values():
            layer.factors.set_owner(self.state)

    def _finish(self):
        """Adapts bases and ranks once more, wherever in a chart the last step has ended."""
        state, model = self.state, self.model
        if state is None or model.integrator.adapt_every == 1:
            return
        layers = {p: one for p, one in find_built_layers(model).items() if state.holds(p)}
        if self._own_train_step:  # which may leave some layers to another optimizer
            layers = {path: one for path, one in layers.items() if path in self.moved}
        step = tf.cast(model.optimizer.iterations, tf.float32)
        points = [layer.factors.read() for layer in layers.values()]
        policies = self.policies(layers.values(), points, step)
        for (path, layer), policy in zip(layers.items(), policies):
            if layer.factors.is_owned_by(
                state
            ):  # a callback may have put other weights in their place
                state.recenter(path, policy)


_TRACED_LOOP = (
    "The optimizer that a `LowRankModel` was compiled with moves U, S and V on the manifold, in "
    "`fit`, `train_on_batch` and a loop that runs eagerly. A loop that is traced cannot tell who "
    "else has assigned them in the meantime. Write what is in the `tf.function` as the "
    "`train_step` of a subclass, and call `model.train_on_batch`; or take another optimizer, which "
    "moves them as three ordinary weights at their present rank. Received: gradients of the layers "
    "{}"
)


_MADE_IN_TRACE = (
    "Low-rank layers must be built before the step that trains them is traced: call the model on a "
    "batch first, or `build` it. Received: the layers {}, which the first step would make"
)


class _Arrival(BaseException):
    """Ends a symbolic run: no `except Exception` of a train step is to catch it."""

    def __init__(self, prepare):
        super().__init__()
        self.prepare = prepare
