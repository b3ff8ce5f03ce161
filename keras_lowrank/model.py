"""LowRankModel: a keras.Model whose low-rank layers are trained by an integrator."""

import functools
import inspect
import warnings
from contextlib import nullcontext

import keras
import tensorflow as tf

from keras_lowrank import integrators, keras_graphs, keras_internals
from keras_lowrank.export.exportable import Exportable
from keras_lowrank.files import checksum
from keras_lowrank.layers import find_low_rank_layers
from keras_lowrank.layers.low_rank_layer import AcrossRanks, find_built_layers
from keras_lowrank.layers.wrappers import refuse_wrappers
from keras_lowrank.optimizers.options import make_rule
from keras_lowrank.ranks.budget import Budget
from keras_lowrank.ranks.truncation import get_truncation
from keras_lowrank.reloading import check_reloads
from keras_lowrank.reporting.compression import count_weights
from keras_lowrank.reporting.summary import print_ranks
from keras_lowrank.training.precision import require_whole_products
from keras_lowrank.training.replicas import check_steps_per_execution, check_strategy
from keras_lowrank.training.training import Training

_NO_HDF5 = (
    "A low-rank model is saved in a file that ends in `.keras`: the older HDF5 format loses ranks, "
    "integrator and truncation. For the weights alone use `save_weights`. Received: {}"
)
_FIT = inspect.signature(keras.Model.fit)


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankModel(Exportable, keras_internals.DistributedTrainer, AcrossRanks, keras.Model):
    r"""A `keras.Model` that trains its low-rank layers on the manifold of low-rank matrices.

    It is made as a `keras.Model` is: `LowRankModel(inputs, outputs)`, or by subclassing. Layers
    inside nested models are found. `fit`, `evaluate`, `predict`, callbacks and saving are Keras's
    own; a step of `fit` moves the factors of every low-rank layer by the integrator and all other
    variables by the optimizer. Without a low-rank layer it trains as `keras.Model` does.

    A `train_step` of your own may prepare the batch and call `super().train_step`, or take
    gradients of all trainable variables and give them to `self.optimizer.apply`: the step is the
    same, but for what its own pass has changed, such as statistics, which stays after a bad step.
    Another optimizer, as each of a GAN has, trains U, S and V as three ordinary weights.

    A step with a value that is not finite raises `FloatingPointError`, and nothing of it is kept;
    with `keras.callbacks.TerminateOnNaN` in `fit`, training stops as in Keras instead.

    Example:

    >>> inputs = keras.Input((8,))
    >>> outputs = keras.layers.Dense(2)(LowRankDense(16, rank=4, activation="relu")(inputs))
    >>> model = LowRankModel(inputs, outputs)
    >>> model.compile("sgd", "mse", integrator="parallel", truncation=0.1)
    >>> history = model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0)
    >>> list(model.ranks)
    ['low_rank_dense']
    """

    _training = None

    @keras_graphs.signed_as_functional
    def __init__(self, inputs=None, outputs=None, name=None, **kwargs):
        self._ranks_frozen = False
        if inputs is None and outputs is None:
            super().__init__(name=name, **kwargs)
        else:
            # Keras would rewrite the bases of the class itself, and break every subclass that is
            # made afterwards; so the instance changes its class instead.
            keras_graphs.become_functional(self)
            super().__init__(inputs, outputs, name=name, **kwargs)

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile="auto",
        *args,
        integrator="rank_adaptive",
        truncation=0.05,
        **kwargs,
    ):
        """Configures the model for training; as `keras.Model.compile`, and two arguments more.

        Args:
            optimizer: str or Keras optimizer, `"rmsprop"` by default. It moves the factors too,
                with its learning rate, momentum, clipping and weight decay: SGD, Adam, AdamW,
                RMSprop, Adagrad, Muon, or one with a rule of your own (`keras_lowrank.optimizers`).
                None, as in Keras, for a model that is evaluated and not trained.
            loss: as in Keras.
            loss_weights: as in Keras.
            metrics: as in Keras.
            weighted_metrics: as in Keras.
            run_eagerly: as in Keras.
            steps_per_execution: as in Keras.
            jit_compile: bool or `"auto"`, as in Keras. XLA compiles for one set of ranks, so it is
                used with `"fixed_rank"` and from `freeze_ranks` on; as long as ranks may change,
                Keras falls back to running without, and says so.
            integrator: str or `Integrator`. With `"rank_adaptive"`, the default, ranks fall, and
                grow: a full step adds directions on trial. With `"parallel"` they only fall.
                `"fixed_rank"` keeps them. Each takes a full step every `adapt_every=16` steps; give
                an instance for another number.
            truncation: float (a relative tolerance) or `Truncation`: the rule for the ranks of
                all layers that do not carry their own, 0.05 by default: a larger one makes them
                smaller. `"fixed_rank"` asks for none.
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
            trained = any(layer.trainable for layer in find_low_rank_layers(self).values())
            if trained:
                refuse_wrappers(self)
            if trained and optimizer is not None:
                make_rule(optimizer, integrator)
                require_whole_products()
            self.integrator = integrator
            self._tell_layers_of_jit()
            super().compile(
                optimizer,
                loss,
                loss_weights,
                metrics,
                weighted_metrics,
                run_eagerly,
                steps_per_execution,
                jit_compile,
                *args,
                **kwargs,
            )
            self._wanted_jit = jit_compile
            self.truncation = truncation
            own_train_step = type(self).train_step is not LowRankModel.train_step
            self._training = Training(self, own_train_step)
            if self.optimizer is not None:
                self.optimizer.apply = self._training.apply
            if keras_internals.is_built(self):
                # Built here, on the other variables alone: elsewhere Keras would build it on all,
                # and slots that follow a factor go stale with the next rank.
                self._training.build_optimizer()

    def train_step(self, data):
        """One step on one batch: integrator for the factors, optimizer for all else."""
        if self.optimizer is None:
            raise ValueError(
                "Training needs an optimizer. Call `compile` with one. Received: optimizer=None"
            )
        batch = keras.utils.unpack_x_y_sample_weight(data)
        training = self._training
        training.prepare(batch)
        if not (layers := training.layers):
            warnings.warn(
                "The model has no trainable low-rank layer; it is trained as a keras.Model is.",
                stacklevel=2,
            )
            return super().train_step(data)
        y_pred = training.step_on(batch, layers)
        x, y, sample_weight = batch
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return keras_internals.per_host(logs)

    def get_metrics_result(self):
        if self._training is not None and tf.executing_eagerly():  # an epoch of `fit` ends here
            self._training.check_last()
        return super().get_metrics_result()

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        callbacks = _FIT.bind(self, *args, **kwargs).arguments.get("callbacks")
        with nullcontext() if self._training is None else self._training.seen_by(callbacks):
            return super().fit(*args, **kwargs)

    def make_train_function(self, force=False):
        # Every `fit` and `train_on_batch` comes here first, and before it others may have switched
        # products back, or trained the layers, in traced code that the host does not see.
        require_whole_products()
        if self._training is None:  # Keras takes what it has loaded for compiled, come what may
            raise ValueError(
                "A model must be compiled before it is trained, also one whose own `compile` was "
                f"not called when it was loaded. Received: model={self.name!r}"
            )
        self._training.mark_unverified()
        if self.train_function is not None and not force:
            return self.train_function
        check_steps_per_execution(self.steps_per_execution, self.distribute_strategy)
        super().make_train_function(force=True)
        run = self.train_function

        def train_function(iterator):
            if not (self._training.prepared or self.run_eagerly):
                built = self.built
                batch, iterator = keras_internals.first_batch(iterator)
                self._training.prepare_on(batch)
                if not built and self._choose_jit():  # layers made just now do not bear it
                    return self.make_train_function(force=True)(iterator)
            with self._training.execution():
                logs = run(iterator)
            return self._training.check_execution(logs)

        self.train_function = train_function
        return self.train_function

    @property
    def ranks_frozen(self):
        """bool, whether `freeze_ranks` holds."""
        return self._ranks_frozen

    @property
    def ranks(self):
        """The present ranks, `{path of the layer: int}`."""
        return {path: layer.rank for path, layer in find_built_layers(self).items()}

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
            raise ValueError(_NO_HDF5.format(f"filepath={filepath}"))
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

        What the optimizer keeps for low-rank layers (momentum) is of the matrices that they had: it
        starts anew with the next step, at equal ranks too. To go on with a training, load the
        whole model, or restore a `tf.train.Checkpoint` of it and its optimizer.

        Raises:
            ValueError: the file is damaged, or that of another model.
            OSError: the file cannot be read.
        """
        checksum.verify(filepath)
        super().load_weights(filepath, *args, **kwargs)

    def __reduce__(self):
        # The class of a functional instance is not the one that its name leads to.
        return keras_graphs.unpickle, super().__reduce__()[1]

    @keras_internals.default
    def get_config(self):
        self.refuse_hdf5()
        return super().get_config()

    def refuse_hdf5(self):
        """Raises ValueError while Keras writes a file in its older format."""
        if keras_internals.is_saving_hdf5():  # by `keras.saving.save_model`, which calls no `save`
            raise ValueError(_NO_HDF5.format(f"model={self.name!r}"))

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:
            config["integrator"] = keras.saving.serialize_keras_object(self.integrator)
            config["truncation"] = keras.saving.serialize_keras_object(self.truncation)
            config["ranks_frozen"] = self._ranks_frozen
            config["jit_compile"] = self._wanted_jit
        return config

    def compile_from_config(self, config):
        if type(self).compile is not LowRankModel.compile:
            # Keras warns that it cannot know the arguments, and leaves the model as it is.
            super().compile_from_config(config)
            return
        self.compile_loaded(config, self.compile)

    def compile_loaded(self, config, compile):
        """Calls `compile` with the arguments in a config of `get_compile_config`."""
        config = keras.saving.deserialize_keras_object(config)
        # Before `compile`, which would warn that XLA is not for ranks that may change.
        self._ranks_frozen |= config.pop("ranks_frozen", False)
        compile(**config)

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
