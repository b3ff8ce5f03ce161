"""Less for TensorFlow to trace and to optimise before the first step.

A step of one matrix is a thousand small operations, most of them in branches that are seldom taken.
TensorFlow traces all of it for every layer anew, and optimises it as one graph. So networks of many
layers would wait long for their first step: these functions take the repetition out of the trace,
and the branches out of the graph. They change nothing in what is computed.
"""

import tensorflow as tf

from keras_lowrank import row_slices
from keras_lowrank.truncation import Policy


def rare(branch):
    """Returns a branch of a `tf.cond` that stays a function of its own, prepared when first taken.

    TensorFlow puts the operations of all other branches and functions in line.

    Args:
        branch: callable without arguments.
    """
    if tf.executing_eagerly():
        return branch
    return tf.function(branch, autograph=False, experimental_attributes={"_noinline": True})


def shared(function):
    """Returns `function`, traced once for all matrices of a step that it treats alike.

    Args:
        function: callable of nests of tensors and of `Policy`s, that returns a nest of tensors. All
            else that it depends on has to be the same for all matrices. Where it is first called
            inside of a branch, it must not depend on any other tensor of the graph.
    """
    traces = {}

    def traced(*arguments):
        # Slices have to know the number of rows, which is that of one matrix.
        if tf.executing_eagerly() or any(map(row_slices.is_slices, tf.nest.flatten(arguments))):
            return function(*arguments)
        kinds, tensors = zip(*map(_parts, arguments))
        flat = tf.nest.flatten(tensors)
        key = kinds, tuple(tensor.dtype for tensor in flat)
        if key not in traces:

            def of_tensors(*flat):
                parts = tf.nest.pack_sequence_as(tensors, flat)
                whole = [
                    argument.of_parts(part) if isinstance(argument, Policy) else part
                    for argument, part in zip(arguments, parts)
                ]
                return function(*whole)

            specs = [tf.TensorSpec([None] * len(tensor.shape), tensor.dtype) for tensor in flat]
            traces[key] = tf.function(of_tensors, autograph=False).get_concrete_function(*specs)
        return traces[key](*flat)

    return traced


def _parts(argument):
    """`(kind, tensors)` of an argument, as `Policy.parts`."""
    return argument.parts() if isinstance(argument, Policy) else (None, argument)
