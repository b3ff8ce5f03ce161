"""Less for TensorFlow to optimise before the first step: what is seldom taken stays out of line.

TensorFlow would put every branch of a step into one graph and optimise all of it before anything
runs. These functions change nothing in what is computed.
"""

import tensorflow as tf

from keras_lowrank import keras_internals


def apart(function, specs=()):
    """A traced function that TensorFlow neither puts in line nor optimises: both take seconds.

    Args:
        function: callable of tensors.
        specs: list of `tf.TensorSpec`, theirs.
    """
    once = tf.function(
        function, autograph=False, experimental_attributes=keras_internals.NOT_OPTIMIZED
    ).get_concrete_function(*specs)

    def call(*tensors):
        with keras_internals.calls_not_optimized():
            return once(*tensors)

    return call


def outlined(branch):
    """Returns a branch of a `tf.cond` that stays a function of its own, prepared when first taken.

    Args:
        branch: callable without arguments.
    """
    if tf.executing_eagerly():
        return branch
    return apart(branch)
