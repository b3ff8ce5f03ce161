"""Branches that are seldom taken, kept out of line: TensorFlow then starts the first step sooner.

TensorFlow would put every branch of a step into one graph, and optimise all of it before the first
step. The values do not change.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_lowrank import keras_internals


def apart(function: Callable[..., Any], specs: Sequence[tf.TensorSpec] = ()) -> Callable[..., Any]:
    """Returns a traced function that TensorFlow neither inlines nor optimises.

    Args:
        function: callable of tensors.
        specs: list of `tf.TensorSpec`, one for each of its arguments.

    Returns:
        Callable of the same tensors.
    """
    once = tf.function(
        function, autograph=False, experimental_attributes=keras_internals.NOT_OPTIMIZED
    ).get_concrete_function(*specs)

    def call(*tensors):
        with keras_internals.calls_not_optimized():
            return once(*tensors)

    return call


def outlined(branch: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a branch of a `tf.cond` as a function of its own, prepared when first taken.

    Args:
        branch: callable without arguments.
    """
    if tf.executing_eagerly():
        return branch
    return apart(branch)
