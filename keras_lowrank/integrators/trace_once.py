"""One trace for all layers, which shortens the time before the first step.

A step does the same to every matrix, but TensorFlow would trace it for each of them. The results
are the same.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_lowrank.manifold import row_sparse
from keras_lowrank.outlined import apart
from keras_lowrank.ranks.policy import Policy


def trace_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function`, traced once for all matrices of a step that it treats alike.

    Args:
        function: callable of nests of tensors, None and `Policy`s, that returns a nest of tensors.
            All else that it uses must be equal for all matrices.
    """
    traces: dict[tuple, Callable] = {}

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
    """Hides that a tensor is constant: TensorFlow would copy the function for each value."""
    return tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=tensor.shape)


def _parts(argument):
    """`(kind, tensors)` of an argument, as in `Policy.parts`."""
    return argument.parts() if isinstance(argument, Policy) else (None, argument)
