"""Less for TensorFlow to trace before the first step: one trace for all layers.

What a step does to a matrix is the same for all layers, and TensorFlow would trace it for each.
These functions change nothing in what is computed.
"""

import tensorflow as tf

from keras_lowrank.manifold import row_sparse
from keras_lowrank.outlined import apart
from keras_lowrank.ranks.truncation import Policy


def trace_once(function):
    """Returns `function`, traced once for all matrices of a step that it treats alike.

    Args:
        function: callable of nests of tensors, None and `Policy`s, that returns a nest of tensors.
            All else that it depends on has to be the same for all matrices.
    """
    traces = {}

    def traced(*arguments):
        if tf.executing_eagerly():
            return function(*arguments)
        kinds, tensors = zip(*map(_parts, arguments))
        given = tf.nest.flatten(tensors, expand_composites=True)
        flat = [_opaque(t) if _is_constant(t) else t for t in given if t is not None]
        there = tuple(tensor is not None for tensor in given)
        slices = tuple(map(row_sparse.is_slices, tf.nest.flatten(tensors)))
        key = kinds, there, slices, tuple((tensor.dtype, len(tensor.shape)) for tensor in flat)
        if key not in traces:

            def of_tensors(*flat):
                values = iter(flat)
                every = [next(values) if one else None for one in there]
                parts = tf.nest.pack_sequence_as(tensors, every, expand_composites=True)
                whole = [
                    argument.of_parts(part) if isinstance(argument, Policy) else part
                    for argument, part in zip(arguments, parts)
                ]
                return function(*whole)

            specs = [tf.TensorSpec([None] * len(tensor.shape), tensor.dtype) for tensor in flat]
            traces[key] = apart(of_tensors, specs)
        return traces[key](*flat)

    return traced


def _is_constant(tensor):
    return not hasattr(tensor, "op") or tensor.op.type == "Const"


def _opaque(tensor):
    """A tensor that TensorFlow does not take for a constant: it would copy functions for each."""
    return tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=tensor.shape)


def _parts(argument):
    """`(kind, tensors)` of an argument, as `Policy.parts`."""
    return argument.parts() if isinstance(argument, Policy) else (None, argument)
