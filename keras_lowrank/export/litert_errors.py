"""Short errors with a remedy, from the long ones of LiteRT's converter."""

import re
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from keras_lowrank.error_reason import reason
from keras_lowrank.export import signature
from keras_lowrank.export.random_inputs import EXTENTS
from keras_lowrank.export.served import Served

_OPERATION = re.compile(
    r"""'tf\.(\w+)' op|operation 'tf\.(\w+)'|current operation: .*"tf\.(\w+)\""""
)
_LOOP = ("TensorList", "TensorArray", "While")
_COMPLEX = {tf.complex64, tf.complex128}

_OTHER_OPERATIONS = (
    "Use other operations; or export `keras_lowrank.to_keras(model)` with Keras, which includes "
    "TensorFlow's own operations, for interpreters with the Flex delegate"
)


def explained(
    error: Exception, served: Served, function: tf.types.experimental.GenericFunction
) -> str:
    """Returns the error text for a failed conversion.

    Args:
        error: the converter's exception.
        served: `Served`.
        function: the traced `tf.function` that failed to convert.
    """
    names = dict.fromkeys(name for found in _OPERATION.findall(str(error)) for name in found)
    operations = ", ".join(filter(None, names))
    kinds = _types(function.get_concrete_function().graph)
    return (
        "LiteRT must have a builtin operation for everything that the model computes. "
        f"{_remedy(operations, kinds, served, function)}. "
        f"Received: {operations or reason(error)}"
    )


def explained_run(error: Exception, function: tf.types.experimental.GenericFunction) -> str:
    """Returns the error text for a converted file that the interpreter cannot run."""
    complex_numbers = _types(function.get_concrete_function().graph) & _COMPLEX
    return (
        "LiteRT must be able to run the file that its converter wrote. "
        f"{'It has few operations for complex numbers. ' if complex_numbers else ''}"
        f"{_OTHER_OPERATIONS}. Received: {reason(error)}"
    )


def _remedy(
    operations: str,
    kinds: set,
    served: Served,
    function: tf.types.experimental.GenericFunction,
) -> str:
    if any(name in operations for name in _LOOP):
        return "It has none for loops: recurrent layers need `unroll=True`"
    if kinds & _COMPLEX:
        return (
            f"It has few for complex numbers: compute real and imaginary parts. {_OTHER_OPERATIONS}"
        )
    if {layer.compute_dtype for layer in served.layers} - {"float32"}:
        return "It computes in float32. Load the weights into a model without a dtype policy"
    # Fixed extents are only suggested if they make the conversion succeed.
    for extent in EXTENTS if signature.is_open(served.signature) else ():
        fixed = signature.with_extents(served.signature, extent)
        if _converts(function, fixed):
            return (
                "It has them for fixed shapes: pass "
                f"`input_signature={signature.written(fixed)}`, with the extents that you need, "
                "or --input_shape on the command line"
            )
    one = signature.with_batch_size(signature.with_extents(served.signature, EXTENTS[0]), 1)
    if served.batch_size is None and _converts(function, one):
        return "It has them for a fixed batch size: pass `batch_size=1`"
    return _OTHER_OPERATIONS


def _converts(function: tf.types.experimental.GenericFunction, arguments: Iterable) -> bool:
    """Whether the function converts, in float, with arguments of these shapes."""
    try:
        traced = tf.function(function.python_function, input_signature=arguments, autograph=False)
        concrete = traced.get_concrete_function()
        tf.lite.TFLiteConverter.from_concrete_functions([concrete], function).convert()
    except Exception:  # the first failure is the one to report
        return False
    return True


def _types(graph: tf.Graph) -> set[Any]:
    """The dtypes of all tensors in a graph and in the functions that it calls."""
    return {
        tf.as_dtype(kind.type)
        for function in graph.as_graph_def().library.function
        for node in function.node_def
        for kind in node.attr.values()
        if kind.type
    } | {tensor.dtype for operation in graph.get_operations() for tensor in operation.outputs}
