"""Private parts of Keras's training loop."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from keras.src.backend import compute_output_spec
from keras.src.losses.loss import unscale_loss_for_distribution

from keras_lowrank.keras_internals.layers import is_built
from keras_lowrank.keras_internals.optimizers import inner_optimizer, sum_gradients

__all__ = [
    "DistributedTrainer",
    "build_for_training",
    "call_in_training",
    "choose_jit",
    "compile_arguments",
    "compute_loss",
    "first_batch",
    "forget_traces",
    "per_host",
    "run_symbolically",
    "spans_hosts",
    "spoil_loss",
    "start_at_epoch",
    "symbolic",
    "track_loss",
    "train_writer",
    "unscale_loss_for_distribution",  # the reported loss is the global one, as in Keras
]

if TYPE_CHECKING:  # a base that stands before `keras.Model`, and extends its methods
    from keras import Model as _Base
else:
    _Base = object


def call_in_training(model: keras.Model, inputs: Any) -> Any:
    """Calls `model` as Keras's train step does: `training=True` only where `call` takes it."""
    if model._call_has_training_arg:
        return model(inputs, training=True)
    return model(inputs)


def compute_loss(model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> tf.Tensor:
    """Returns the loss of a training step, from `model.compute_loss`.

    A user's `compute_loss` from before Keras 3.3 takes no argument `training`.
    """
    return model._compute_loss(x, y, y_pred, sample_weight, training=True)


def symbolic(batch: Any) -> Any:
    """Returns symbolic tensors in place of those of a batch."""
    return tf.nest.map_structure(
        lambda one: one if one is None else keras.KerasTensor(one.shape, one.dtype), batch
    )


def run_symbolically(function: Callable, data: Any) -> Any:
    """Calls `function` on symbolic tensors, in a graph that is thrown away.

    Nothing is assigned. Variables that it makes, as of unbuilt layers, stay.
    """
    return compute_output_spec(function, data)


def first_batch(iterator: Iterable) -> tuple[Any, Iterable]:
    """Returns `(batch, iterator)`: the first batch as symbolic tensors, and the whole iterator.

    The iterator is one of `fit` or `train_on_batch`. The batch is None where it is unknown.
    """
    if hasattr(iterator, "element_spec"):
        return _batch_of(iterator), iterator
    for batch in iterator:  # Keras's generator around the batch of `train_on_batch`
        return symbolic(batch), itertools.chain([batch], iterator)
    return None, iterator


def _batch_of(iterator: Any) -> Any:
    """What the data give one replica, as symbolic tensors; None where they do not specify it."""

    def symbolic(spec):
        # One spec for each replica of this process, where it has several.
        spec = getattr(spec, "_value_specs", [spec])[0]
        # A part that is absent (sample weights, say) has a spec without a shape.
        return keras.KerasTensor(spec.shape, spec.dtype) if hasattr(spec, "shape") else None

    spec = getattr(iterator, "element_spec", None)
    return None if spec is None else tf.nest.map_structure(symbolic, spec)


class DistributedTrainer(_Base):
    """Corrects `fit` of a `LowRankModel` under `tf.distribute`."""

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras would build the optimizer on all trainable variables here. It would also draw a
        # batch and average it over the replicas, which fails where each host has one of them.
        if self._distribute_strategy is not None:
            batch = _batch_of(iterator._distributed_dataset) if data_batch is None else data_batch
            with self._distribute_strategy.scope():
                self._training.prepare_on(batch)

    def train_step(self, data: Any) -> dict[str, Any]:
        sum_gradients(inner_optimizer(self.optimizer), True)
        return per_host(super().train_step(data))

    def test_step(self, data: Any) -> dict[str, Any]:
        return per_host(super().test_step(data))


def per_host(logs: dict[str, Any]) -> dict[str, Any]:
    """Returns the logs of a step in the shape that Keras averages over all replicas."""
    if not spans_hosts(tf.distribute.get_strategy()):
        return logs
    # Between hosts Keras also averages over the first axis, which a scalar does not have.
    return {name: tf.expand_dims(value, 0) for name, value in logs.items()}


def spans_hosts(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy has replicas in other processes."""
    count = strategy.num_replicas_in_sync
    return count > 1 and count > len(strategy.extended.worker_devices)


def build_for_training(
    model: keras.Model, batch: Any, build_optimizer: Callable[[], object]
) -> None:
    """Makes every variable that a train step needs: of layers, optimizer, metrics and loss.

    Keras makes them in the first trace of the step, and a new variable there costs a second trace.

    Args:
        model: compiled `keras.Model`.
        batch: `(x, y, sample_weight)`, tensors or symbolic tensors.
        build_optimizer: callable, called once the model is built. Keras would build the optimizer
            on all trainable variables.
    """
    if not is_built(model):
        # A run, and not only the shapes: a layer in an attribute is built by its call.
        run_symbolically(functools.partial(call_in_training, model), symbolic(batch[0]))
    build_optimizer()
    model._symbolic_build(data_batch=batch)


def choose_jit(model: keras.Model, wanted: bool | str) -> None:
    """Decides again, as `compile` does, whether XLA compiles the model's functions."""
    # Keras checks that XLA is allowed only when the value changes.
    model.jit_compile = False
    model.jit_compile = model._resolve_auto_jit_compile() if wanted == "auto" else wanted


def track_loss(model: keras.Model, loss: tf.Tensor, inputs: Any) -> None:
    """Adds a loss to the epoch's mean, weighted by batch size, as Keras's train step does."""
    batch = next(tensor for tensor in tf.nest.flatten(inputs) if tensor is not None)
    model._loss_tracker.update_state(
        unscale_loss_for_distribution(loss), sample_weight=tf.shape(batch)[0]
    )


def spoil_loss(model: keras.Model) -> None:
    """Makes the epoch's mean of the loss NaN, as a non-finite step does in Keras."""
    model._loss_tracker.update_state(float("nan"))


def train_writer(tensorboard: keras.callbacks.TensorBoard) -> Any:
    """Returns the summary writer of the run `train`; a second one would hide its events."""
    return tensorboard._train_writer


def start_at_epoch(model: keras.Model, epoch: int | None) -> None:
    """Makes the `fit` that is beginning start at `epoch`; callbacks have no public way to."""
    model._initial_epoch = epoch


def forget_traces(model: Any) -> None:
    """Drops the functions that were traced with weights that are there no more.

    Keras drops its own after `quantize`, and asks each class by this hook for those it has beside.
    """
    model.train_function = model.test_function = model.predict_function = None
    getattr(model, "_post_quantize", lambda mode: None)("low_rank")


def compile_arguments(model: keras.Model) -> dict[str, Any] | None:
    """Returns the arguments that a model was compiled with, as objects; None where it was not."""
    if not (model.compiled and hasattr(model, "_compile_config")):
        return None
    # Resolved by now, so that what was "auto" cannot be told; layers have changed since.
    return {**model._compile_config.config, "jit_compile": "auto"}
