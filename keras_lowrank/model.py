"""`LowRankModel`, a `keras.Model` that trains its low-rank layers with an integrator."""

import functools
import inspect
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank import integrators, keras_graphs, keras_internals
from keras_lowrank.export.exportable import Exportable
from keras_lowrank.integrators import Integrator
from keras_lowrank.layers.across_ranks import AcrossRanks
from keras_lowrank.layers.find_layers import find_low_rank_layers
from keras_lowrank.layers.wrappers import refuse_wrappers
from keras_lowrank.optimizers.options import make_rule
from keras_lowrank.ranks.budget import Budget
from keras_lowrank.ranks.truncation import Truncation, get_truncation
from keras_lowrank.reporting.reported import Reported
from keras_lowrank.saving import Savable
from keras_lowrank.training.precision import require_whole_products
from keras_lowrank.training.rank_freezing import RankFreezing
from keras_lowrank.training.replicas import check_steps_per_execution, check_strategy
from keras_lowrank.training.training import Training

_FIT = inspect.signature(keras.Model.fit)


@keras.saving.register_keras_serializable("keras_lowrank")
class LowRankModel(
    Exportable,
    Savable,
    Reported,
    RankFreezing,
    keras_internals.DistributedTrainer,
    AcrossRanks,
    keras.Model,
):
    r"""A `keras.Model` that trains its low-rank layers on the manifold of low-rank matrices.

    Make it as a `keras.Model`: `LowRankModel(inputs, outputs)`, or a subclass. Low-rank layers
    inside nested models count too. `fit`, `evaluate`, `predict`, callbacks and saving are those of
    Keras. In a step of `fit` the integrator updates the factors of every low-rank layer, and the
    optimizer all other variables. Without low-rank layers the model trains as a `keras.Model`.

    A custom `train_step` may prepare the batch and call `super().train_step`. Or it may take the
    gradients of all trainable variables and pass them to `self.optimizer.apply`, for the same step.
    What its forward pass changes, such as statistics, then stays after a non-finite step. Other
    optimizers, as in a GAN, train U, S and V as ordinary weights.

    A step with a non-finite value changes nothing and raises `FloatingPointError`. With
    `keras.callbacks.TerminateOnNaN` in `fit`, training stops as in Keras instead.

    Args:
        inputs: as in `keras.Model`.
        outputs: as in `keras.Model`.
        name: str or None.
        **kwargs: all other arguments of `keras.Model`.

    Attributes:
        integrator: `Integrator`, once compiled.
        truncation: `Truncation`, once compiled, the rule for layers without their own.

    Example:

    >>> inputs = keras.Input((8,))
    >>> outputs = keras.layers.Dense(2)(LowRankDense(16, rank=4, activation="relu")(inputs))
    >>> model = LowRankModel(inputs, outputs)
    >>> model.compile("sgd", "mse", integrator="parallel", truncation=0.1)
    >>> history = model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0)
    >>> list(model.ranks)
    ['low_rank_dense']
    """

    integrator: Integrator
    truncation: Truncation
    train_function: Any
    _training: Any = None  # the `Training` that `compile` makes

    @keras_graphs.signed_as_functional
    def __init__(
        self, inputs: Any = None, outputs: Any = None, name: str | None = None, **kwargs: Any
    ) -> None:
        if inputs is None and outputs is None:
            super().__init__(name=name, **kwargs)
        else:
            # Keras would rewrite the bases of the class, and break every later subclass. So the
            # instance changes its class instead.
            keras_graphs.become_functional(self)
            super().__init__(inputs, outputs, name=name, **kwargs)

    def compile(
        self,
        optimizer: str | dict[str, Any] | keras.optimizers.Optimizer | None = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | str = "auto",
        auto_scale_loss: bool = True,
        *,
        integrator: str | dict[str, Any] | Integrator = "rank_adaptive",
        truncation: float | dict[str, Any] | Truncation = 0.05,
    ) -> None:
        """Configures the model for training: `keras.Model.compile` with two more arguments.

        Args:
            optimizer: str or Keras optimizer, `"rmsprop"` by default. Its learning rate, momentum,
                clipping and weight decay apply to the low-rank layers too: SGD, Adam, AdamW,
                RMSprop, Adagrad, Muon, or one with a rule of your own (`keras_lowrank.optimizers`).
                None for a model that is evaluated and not trained.
            loss: as in Keras.
            loss_weights: as in Keras.
            metrics: as in Keras.
            weighted_metrics: as in Keras.
            run_eagerly: as in Keras.
            steps_per_execution: as in Keras.
            jit_compile: bool or `"auto"`, as in Keras. XLA needs fixed ranks: it is used with
                `"fixed_rank"` and after `freeze_ranks`. While ranks may change, Keras runs without
                XLA and warns.
            auto_scale_loss: as in Keras.
            integrator: str or `Integrator`. With `"rank_adaptive"` (the default) ranks fall and
                grow: a full step tries new directions. With `"parallel"` they only fall.
                `"fixed_rank"` keeps them. Each takes a full step every `adapt_every=16` steps; pass
                an instance for another number.
            truncation: float (a relative tolerance) or `Truncation`, 0.05 by default: the rule for
                the ranks of all layers without their own. A larger tolerance gives smaller ranks.
                Not used by `"fixed_rank"`.

        Raises:
            ValueError: an unknown integrator, a tolerance outside its range, or an optimizer or
                option of an optimizer that has no meaning for a low-rank matrix.
        """
        with self.distribute_strategy.scope():
            chosen, rule = integrators.get(integrator), get_truncation(truncation)
            optimizer = keras.optimizers.get(optimizer)
            if isinstance(rule, Budget) and not chosen.adapts_rank:
                raise ValueError(
                    "A `Budget` needs ranks that can change: use integrator='parallel' or "
                    f"'rank_adaptive'. Received: integrator={type(chosen).__name__}"
                )
            check_strategy(keras_internals.inner_optimizer(optimizer))
            trained = any(layer.trainable for layer in find_low_rank_layers(self).values())
            if trained:
                refuse_wrappers(self)
            if trained and optimizer is not None:
                make_rule(optimizer, chosen)
                require_whole_products()
            self.integrator = chosen
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
                auto_scale_loss,
            )
            self._wanted_jit = jit_compile
            self.truncation = rule
            own_train_step = type(self).train_step is not LowRankModel.train_step
            self._training = Training(self, own_train_step)
            if self.optimizer is not None:
                self.optimizer.apply = self._training.apply
            if keras_internals.is_built(self):
                # Built here, on the other variables alone. Keras would build it on all, with slots
                # for the factors that go stale at the next rank.
                self._training.build_optimizer()

    def train_step(self, data: Any) -> dict[str, Any]:
        """Trains on one batch: the factors with the integrator, all else with the optimizer.

        Args:
            data: the batch, as Keras passes it.

        Returns:
            Dict of metrics.
        """
        if self.optimizer is None:
            raise ValueError(
                "Training needs an optimizer. Call `compile` with one. Received: optimizer=None"
            )
        batch = keras.utils.unpack_x_y_sample_weight(data)
        training = self._training
        training.prepare(batch)
        if not (layers := training.layers):
            warnings.warn(
                "The model has no trainable low-rank layer; it trains as a keras.Model does.",
                stacklevel=2,
            )
            return super().train_step(data)
        y_pred = training.step_on(batch, layers)
        x, y, sample_weight = batch
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return keras_internals.per_host(logs)

    def get_metrics_result(self) -> dict[str, Any]:
        if self._training is not None and tf.executing_eagerly():  # an epoch of `fit` ends here
            self._training.fault_check.check_last()
        return super().get_metrics_result()

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        callbacks = _FIT.bind(self, *args, **kwargs).arguments.get("callbacks")
        with nullcontext() if self._training is None else self._training.during_fit(callbacks):
            return super().fit(*args, **kwargs)

    def make_train_function(self, force: bool = False) -> Callable[..., Any]:
        # Called first in every `fit` and `train_on_batch`. Before it, other code may have changed
        # the precision of products, or trained the layers in traced code.
        require_whole_products()
        if self._training is None:  # Keras regards every loaded model as compiled
            raise ValueError(
                "A model must be compiled before it is trained. Loading does not call an "
                f"overridden `compile`. Received: model={self.name!r}"
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
                if not built and self._choose_jit():  # the layers made just now rule out XLA
                    return self.make_train_function(force=True)(iterator)
            with self._training.execution():
                logs = run(iterator)
            return self._training.fault_check.check_execution(logs)

        self.train_function = train_function
        return self.train_function

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if config:
            config["integrator"] = keras.saving.serialize_keras_object(self.integrator)
            config["truncation"] = keras.saving.serialize_keras_object(self.truncation)
            config["ranks_frozen"] = self._ranks_frozen
            config["jit_compile"] = self._wanted_jit
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        if type(self).compile is not LowRankModel.compile:
            # Keras warns that it does not know the arguments, and does not compile the model.
            super().compile_from_config(config)
            return
        self._compile_loaded(config, self.compile)

    def _compile_loaded(self, config: dict[str, Any], compile: Callable[..., None]) -> None:
        """Calls `compile` with the arguments in a config of `get_compile_config`."""
        config = keras.saving.deserialize_keras_object(config)
        # Set before `compile`, which would warn that XLA needs fixed ranks.
        self._ranks_frozen |= config.pop("ranks_frozen", False)
        compile(**config)


def become_low_rank(model: keras.Model, before: tuple[type, ...] = ()) -> None:
    """Makes a model a `LowRankModel` in place: it is still of its class, and does what that does.

    Args:
        model: `keras.Model`. `LowRankModel` comes behind its class, where `keras.Model` was, so
            that a `compile`, `fit` or `train_step` of its own goes on working.
        before: tuple of classes whose methods go before all others.
    """
    after = () if isinstance(model, LowRankModel) else (LowRankModel,)
    keras_graphs.change_class(model, before, after)
    vars(model).setdefault("_ranks_frozen", False)
    keras_internals.forget_traces(model)
