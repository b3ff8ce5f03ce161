"""LowRankModel: a keras.Model whose low-rank layers are trained by an integrator."""

import functools
import warnings

import keras
import tensorflow as tf

from keras_lowrank import checksum, integrators, keras_internals
from keras_lowrank.budget import Budget
from keras_lowrank.compression import count_others, count_weights
from keras_lowrank.distribution import check_steps_per_execution, check_strategy
from keras_lowrank.export.exportable import Exportable
from keras_lowrank.faults import FaultRecord
from keras_lowrank.layers import find_low_rank_layers
from keras_lowrank.layers.low_rank_layer import find_built_layers, set_weights
from keras_lowrank.optimizers import rule_for, rules_of
from keras_lowrank.optimizers.rule import ACCUMULATED, TANGENT
from keras_lowrank.optimizers.state import OptimizerState
from keras_lowrank.precision import require_whole_products
from keras_lowrank.reloading import check_reloads
from keras_lowrank.summary import print_ranks
from keras_lowrank.training_step import TrainingStep
from keras_lowrank.truncation import KeepRank, Policy, get_truncation, plan


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankModel(Exportable, keras_internals.DistributedTrainer, keras.Model):
    r"""A `keras.Model` that trains its low-rank layers on the manifold of low-rank matrices.

    It is made as a `keras.Model` is: `LowRankModel(inputs, outputs)`, or by subclassing. Layers
    inside nested models are found. `fit`, `evaluate`, `predict`, callbacks and saving are Keras's
    own; a step of `fit` moves the factors of every low-rank layer by the integrator and all other
    variables by the optimizer. Without a low-rank layer it trains as `keras.Model` does.

    Example:

    >>> inputs = keras.Input((8,))
    >>> outputs = keras.layers.Dense(2)(LowRankDense(16, rank=4, activation="relu")(inputs))
    >>> model = LowRankModel(inputs, outputs)
    >>> model.compile("sgd", "mse", integrator="parallel", truncation=0.1)
    >>> history = model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0)
    >>> list(model.ranks)
    ['low_rank_dense']
    """

    @keras_internals.signed_as_functional
    def __init__(self, inputs=None, outputs=None, name=None, **kwargs):
        self._ranks_frozen = False
        if inputs is None and outputs is None:
            super().__init__(name=name, **kwargs)
        else:
            # Keras would rewrite the bases of the class itself, and break every subclass that is
            # made afterwards; so the instance changes its class instead.
            keras_internals.become_functional(self)
            super().__init__(inputs, outputs, name=name, **kwargs)

    def compile(
        self,
        optimizer="sgd",
        loss=None,
        *args,
        integrator="parallel",
        truncation=0.1,
        jit_compile="auto",
        **kwargs,
    ):
        """Configures the model for training; as `keras.Model.compile`, and two arguments more.

        Args:
            optimizer: str or Keras optimizer, `"sgd"` by default. It moves the factors too, with
                its learning rate, momentum, clipping and weight decay: SGD, Adam, AdamW, RMSprop,
                Adagrad, Muon, or one with a rule of your own (`keras_lowrank.optimizers`).
            loss: as in Keras.
            integrator: str or `Integrator`. With `"parallel"`, the default, ranks fall. With
                `"rank_adaptive"` a full step adds directions on trial, so that a rank which starts
                too low grows. `"fixed_rank"` keeps the ranks. Each takes a full step every
                `adapt_every=16` steps; give an instance for another number.
            truncation: float (a relative tolerance) or `Truncation`: the rule for the ranks of
                all layers that do not carry their own. `"fixed_rank"` asks for none.
            jit_compile: bool or `"auto"`, as in Keras. XLA compiles for one set of ranks, so it is
                used with `"fixed_rank"` and from `freeze_ranks` on; as long as ranks may change,
                Keras falls back to running without, and says so.
            *args: all other arguments of `keras.Model.compile`, in its order.
            **kwargs: the same, by name.

        Raises:
            ValueError: an unknown integrator, a tolerance outside its range, or an optimizer or
                an option of one that has no meaning for a low-rank matrix.
        """
        with self.distribute_strategy.scope():
            integrator = integrators.get(integrator)
            truncation = get_truncation(truncation)
            optimizer = keras.optimizers.get(optimizer)
            if isinstance(truncation, Budget) and not integrator.adapts_rank:
                raise ValueError(
                    "A `Budget` is met by ranks that change: use integrator='parallel' or "
                    f"'rank_adaptive'. Received: integrator={type(integrator).__name__}"
                )
            check_strategy(keras_internals.inner_optimizer(optimizer))
            if any(layer.trainable for layer in find_low_rank_layers(self).values()):
                rule_for(optimizer, integrator)
                require_whole_products()
            self.integrator = integrator
            self._tell_layers_of_jit()
            super().compile(optimizer, loss, *args, jit_compile=jit_compile, **kwargs)
            self._wanted_jit = jit_compile
            self.truncation = truncation
            self.faults = FaultRecord()
            self.optimizer_state = None
            self._prepared = False
            if self.built:
                # Built here, on the other variables alone: elsewhere Keras would build it on all,
                # and slots that follow a factor go stale with the next rank.
                self.build_optimizer()

    def train_step(self, data):
        """One step on one batch: integrator for the factors, optimizer for all else."""
        batch = keras.utils.unpack_x_y_sample_weight(data)
        self.prepare(batch)
        layers = self._trained_layers()
        if not layers:
            warnings.warn(
                "The model has no trainable low-rank layer; it is trained as a keras.Model is.",
                stacklevel=2,
            )
            return super().train_step(data)
        x, y, y_pred, sample_weight = TrainingStep(self, layers, batch).run()
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return keras_internals.per_host(logs)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        history = super().fit(*args, **kwargs)
        self._finish_training()
        return history

    def make_train_function(self, force=False):
        # Every `fit` and `train_on_batch` comes here first, and before it others may have switched
        # products back, or trained the layers, in traced code that the host does not see.
        require_whole_products()
        if self.optimizer_state is not None:
            self.optimizer_state.doubt()
        if self.train_function is not None and not force:
            return self.train_function
        check_steps_per_execution(self.steps_per_execution, self.distribute_strategy)
        super().make_train_function(force=True)
        run = self.train_function

        def train_function(iterator):
            known = self._prepared or self.run_eagerly
            if not known and (batch := keras_internals.batch_of(iterator)) is not None:
                built = self.built
                self.prepare(keras.utils.unpack_x_y_sample_weight(batch))
                if not built and self._choose_jit():  # layers made just now do not bear it
                    return self.make_train_function(force=True)(iterator)
            if self.optimizer_state is not None:
                self.optimizer_state.settle(at_origin=self.integrator.adapt_every == 1)
            logs = run(iterator)
            if self.run_eagerly or tf.config.functions_run_eagerly():
                # The step itself has assigned the factors where the host sees it.
                for layer in self._trained_layers().values():
                    layer.factors.taken_by(self.optimizer_state)
            self.faults.raise_if_any()
            return logs

        self.train_function = train_function
        return self.train_function

    @property
    def ranks_frozen(self):
        """bool, whether `freeze_ranks` holds."""
        return self._ranks_frozen

    @property
    def ranks(self):
        """The present ranks, `{path of the layer: int}`."""
        return {path: layer.factors.rank for path, layer in find_built_layers(self).items()}

    def freeze_ranks(self):
        """From here on every rank stays what it is. Costs one more trace of the train function."""
        self._set_frozen(True)

    def unfreeze_ranks(self):
        """Lets the ranks follow the truncation again."""
        self._set_frozen(False)

    def compression(self):
        """The numbers of weights, now and at full rank: a `keras_lowrank.Compression`."""
        return count_weights(self)

    def summary(self, line_length=None, positions=None, print_fn=None, *args, **kwargs):
        """Prints `keras.Model.summary`, and a table of the ranks and what they save.

        Args:
            line_length: int or None, as in Keras, for both tables.
            positions: list of float or None, as in Keras.
            print_fn: callable or None, as in Keras. It is called once for each table.
            *args: all other arguments of `keras.Model.summary`, in its order.
            **kwargs: the same, by name.
        """
        super().summary(line_length, positions, print_fn, *args, **kwargs)
        print_ranks(self, line_length, print_fn)

    def save(self, filepath, *args, **kwargs):
        """Saves the model as Keras does, in the format `.keras`.

        Raises:
            ValueError: a path that asks for the older HDF5 format, or a model that would not load
                again: one with layers that its class does not make from its config.
        """
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                "A low-rank model is saved in a file that ends in `.keras`: the older HDF5 format "
                "loses ranks, integrator and truncation. For the weights alone use `save_weights`. "
                f"Received: filepath={filepath}"
            )
        self._check_reloads()
        super().save(filepath, *args, **kwargs)

    def _check_reloads(self):
        """Once for all that it holds: a checkpoint is written every epoch."""
        layers = [self, *keras_internals.all_layers(self)]
        known = [id(layer) for layer in layers]
        if self.built and known != getattr(self, "_reloads_with", None):
            check_reloads(self)
            self._reloads_with = known

    def save_weights(self, filepath, *args, **kwargs):
        """Saves the weights as Keras does; a `.weights.h5` file gets a checksum of its contents."""
        super().save_weights(filepath, *args, **kwargs)
        checksum.seal(filepath)

    def load_weights(self, filepath, *args, **kwargs):
        """Loads weights as Keras does, after a look at the checksum where the file has one.

        Raises:
            ValueError: the file is damaged, or that of another model.
            OSError: the file cannot be read.
        """
        checksum.verify(filepath)
        super().load_weights(filepath, *args, **kwargs)

    def set_weights(self, weights):
        """Sets all weights from a list of arrays; ranks follow the arrays."""
        set_weights(self, weights)

    def __reduce__(self):
        # The class of a functional instance is not the one that its name leads to.
        return keras_internals.unpickle, super().__reduce__()[1]

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:
            config["integrator"] = keras.saving.serialize_keras_object(self.integrator)
            config["truncation"] = keras.saving.serialize_keras_object(self.truncation)
            config["ranks_frozen"] = self._ranks_frozen
            config["jit_compile"] = self._wanted_jit
        return config

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        # Before `compile`, which would warn that XLA is not for ranks that may change.
        self._ranks_frozen |= config.pop("ranks_frozen", False)
        self.compile(**config)

    @property
    def other_variables(self):
        """The trainable variables that are no factors: those the compiled optimizer updates."""
        layers = find_built_layers(self).values()
        factors = {id(v) for layer in layers for v in layer.factors.variables}
        return [v for v in self.trainable_variables if id(v) not in factors]

    def policies(self, layers, matrices, step):
        """The truncation `Policy` of every low-rank layer for one step.

        Args:
            layers: list of trained `LowRankLayer`.
            matrices: list of their `Factorization`.
            step: scalar float tensor, the number of the step: 1, 2, ...
        """
        if self._ranks_frozen or not self.integrator.adapts_rank:
            return [Policy(KeepRank())] * len(matrices)
        policies = [layer.policy for layer in layers]
        policies = [
            policy if policy.truncation else policy._replace(truncation=self.truncation)
            for policy in policies
        ]
        return plan(policies, matrices, step, count_others(self, layers))

    @functools.cached_property
    def _stand_in_holder(self):
        # In a tuple inside a plain object: Keras must not count it among the model's weights.
        return _Holder(keras.Variable(0.0, name="stand_in"))

    @property
    def stand_in(self):
        """What the optimizer updates in a model that has no other variables: one idle number."""
        return [self._stand_in_holder.variable]

    def _trained_layers(self):
        return {path: one for path, one in find_built_layers(self).items() if one.trainable}

    def prepare(self, batch):
        """Makes every variable that a train step needs, given the first batch of training."""
        if self._prepared:
            return
        if self.run_eagerly and not tf.distribute.has_strategy():
            # No trace to save, and a layer may not bear symbolic tensors.
            if not all(layer.built for layer in keras_internals.all_layers(self)):
                self(batch[0])
            self.build_optimizer()
        else:
            keras_internals.build_for_training(self, batch, self.build_optimizer)
        self._prepared = True

    def build_optimizer(self):
        """Makes the variables of the optimizer, of which the factors have their own kind."""
        layers = self._trained_layers()
        if self.optimizer is None:
            return
        if not self.optimizer.built:
            self.optimizer.build(self.other_variables or self.stand_in)
        if not layers:
            return
        # What the optimizer keeps for the factors, beside what it keeps for all else.
        self.rule = rule_for(self.optimizer, self.integrator)
        optimizer = keras_internals.inner_optimizer(self.optimizer)
        sums = {ACCUMULATED: TANGENT} if optimizer.gradient_accumulation_steps else {}
        rules = rules_of(self.rule, layers)
        kinds = {path: {**rule.state, **sums} for path, rule in rules.items()}
        self.optimizer_state = OptimizerState.of(optimizer, layers, kinds)

    def _finish_training(self):
        """Adapts bases and ranks once more, wherever in a chart the last step has ended."""
        state = self.optimizer_state
        if state is None or self.integrator.adapt_every == 1:
            return
        layers = {p: one for p, one in find_built_layers(self).items() if state.holds(p)}
        step = tf.cast(self.optimizer.iterations, tf.float32)
        points = [layer.factors.read() for layer in layers.values()]
        policies = self.policies(layers.values(), points, step)
        for (path, layer), policy in zip(layers.items(), policies):
            if layer.factors.left_by(state):  # a callback may have put other weights in their place
                state.recenter(path, policy)

    def _tell_layers_of_jit(self):
        static = self._ranks_frozen or not self.integrator.adapts_rank
        for layer in find_low_rank_layers(self).values():
            layer.supports_jit = static

    def _choose_jit(self):
        """Decides anew whether XLA compiles the functions; returns whether that has changed."""
        before = self.jit_compile
        self._tell_layers_of_jit()
        keras_internals.choose_jit(self, self._wanted_jit)
        return self.jit_compile != before

    def _set_frozen(self, frozen):
        if frozen == self._ranks_frozen:
            return
        self._ranks_frozen = frozen
        if self.compiled:
            self._choose_jit()
        if self.compiled and self.train_function is not None:
            self.make_train_function(force=True)


class _Holder:
    def __init__(self, variable):
        self.variable = variable
