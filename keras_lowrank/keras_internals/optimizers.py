"""Private parts of Keras's optimizers."""

import sys
from collections.abc import Iterable, Sequence

import keras
import tensorflow as tf
from keras.src.optimizers.loss_scale_optimizer import LossScaleOptimizer
from keras.src.utils.tracking import no_automatic_dependency_tracking

__all__ = [
    "LossScaleOptimizer",
    "built_on",
    "completed_steps",
    "completes_accumulation",
    "decays",
    "hold",
    "inner_optimizer",
    "kept_for",
    "sum_gradients",
    "updated_by_optimizer",
]


def inner_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer inside a `LossScaleOptimizer`, or the optimizer itself."""
    return optimizer.inner_optimizer if isinstance(optimizer, LossScaleOptimizer) else optimizer


def completed_steps(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Returns the count of the steps of `optimizer`.

    Up to Keras 3.8 a `LossScaleOptimizer` does not count its own.
    """
    return inner_optimizer(optimizer).iterations


def built_on(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Returns the variables that an optimizer was built to update."""
    return inner_optimizer(optimizer)._trainable_variables


def kept_for(slot: keras.Variable, variables: Iterable[keras.Variable]) -> keras.Variable | None:
    """Returns the variable among `variables` that an optimizer keeps `slot` for, or None.

    The name of a slot begins with the path of its variable; Keras keeps no other record.
    """
    named = [v for v in variables if slot.name.startswith(v.path.replace("/", "_") + "_")]
    return max(named, key=lambda variable: len(variable.path), default=None)


def sum_gradients(optimizer: keras.optimizers.Optimizer, wanted: bool) -> None:
    """Sets whether `optimizer` sums its gradients over replicas; in a step they are sums already.

    Set at every trace: a step without low-rank layers is Keras's own.
    """
    optimizer.__dict__.pop("_all_reduce_sum_gradients", None)
    if not wanted:
        optimizer._all_reduce_sum_gradients = list


def completes_accumulation(optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
    """Scalar bool tensor: this call of a gradient-accumulating `optimizer` applies the sum."""
    steps = tf.cast(optimizer.gradient_accumulation_steps, optimizer._iterations.dtype)
    return tf.equal((optimizer._iterations.value + 1) % steps, 0)


@no_automatic_dependency_tracking
def hold(optimizer: keras.optimizers.Optimizer, variables: Iterable[keras.Variable]) -> None:
    """Makes variables part of the state of `optimizer`: saved, restored and counted with it."""
    for variable in variables:
        optimizer._track_variable(variable)


def updated_by_optimizer(variable: keras.Variable, above: int) -> list[keras.Variable]:
    """Returns what an optimizer has just updated, if it is what now reads `variable.constraint`.

    Keras's optimizers read the constraint of every variable after an update, and notify it of
    nothing else. So this looks into the frame of the caller.

    Args:
        variable: the variable whose constraint is read.
        above: int, how many frames above the caller the optimizer's would be.

    Returns:
        List of variables, empty where something else reads the constraint.
    """
    frame = sys._getframe(above + 1)
    optimizer = frame.f_locals.get("self")
    updated = frame.f_locals.get("trainable_variables", ())
    is_optimizer = isinstance(optimizer, keras.optimizers.Optimizer)
    return list(updated) if is_optimizer and any(one is variable for one in updated) else []


def decays(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable], name: str
) -> bool:
    """Whether the `weight_decay` of `optimizer` covers `variables`, and a weight called `name`."""
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    if pattern is not None and pattern.search(name):
        return False
    return all(optimizer._use_weight_decay(variable) for variable in variables)
