"""What stands in the way of LiteRT, and the way round it, from the pages of its converter."""

import re

import tensorflow as tf

from keras_lowrank.error_reason import reason
from keras_lowrank.export import signature
from keras_lowrank.export.random_inputs import EXTENTS

_OPERATION = re.compile(
    r"""'tf\.(\w+)' op|operation 'tf\.(\w+)'|current operation: .*"tf\.(\w+)\""""
)
_LOOP = ("TensorList", "TensorArray", "While")
_COMPLEX = {tf.complex64, tf.complex128}

_OTHER_WORDS = (
    "Write it with other operations; or export `keras_lowrank.to_keras(model)` by Keras, which "
    "takes TensorFlow's own operations into the file, for interpreters with its Flex delegate"
)


def explained(error, served, function):
    """The text of the error for a failure of the converter.

    Args:
        error: what it raised.
        served: `Served`.
        function: the traced function that it was to convert.
    """
    names = dict.fromkeys(name for found in _OPERATION.findall(str(error)) for name in found)
    operations = ", ".join(filter(None, names))
    kinds = _types(function.get_concrete_function().graph)
    return (
        "LiteRT must have a builtin operation for all that the model computes. "
        f"{_remedy(operations, kinds, served, function)}. "
        f"Received: {operations or reason(error)}"
    )


def explained_run(error, function):
    """The text of the error for an interpreter that cannot run what the converter has written."""
    complex_numbers = _types(function.get_concrete_function().graph) & _COMPLEX
    return (
        "LiteRT must be able to run the file that its converter has written. "
        f"{'It has few operations for complex numbers. ' if complex_numbers else ''}"
        f"{_OTHER_WORDS}. Received: {reason(error)}"
    )


def _remedy(operations, kinds, served, function):
    if any(name in operations for name in _LOOP):
        return "A loop has none: recurrent layers need `unroll=True`"
    if kinds & _COMPLEX:
        return f"It has few for complex numbers: compute real and imaginary parts. {_OTHER_WORDS}"
    if {layer.compute_dtype for layer in served.layers} - {"float32"}:
        return (
            "It computes in float32: other precisions are for training. Load the weights into a "
            "model without a dtype policy"
        )
    # Whether fixing what is free is the cure is tried, not guessed.
    for extent in EXTENTS if signature.is_free(served.signature) else ():
        fixed = signature.with_extents(served.signature, extent)
        if _converts(function, fixed):
            return (
                "It has them for extents that are fixed: pass "
                f"`input_signature={signature.written(fixed)}`, with the lengths that you need, "
                "or --input_shape on the command line"
            )
    one = signature.with_batch_size(signature.with_extents(served.signature, EXTENTS[0]), 1)
    if served.batch_size is None and _converts(function, one):
        return "It has them for a batch size that is fixed: pass `batch_size=1`"
    return _OTHER_WORDS


def _converts(function, arguments):
    """Whether the function converts, in float, once it is called with other shapes."""
    try:
        traced = tf.function(function.python_function, input_signature=arguments, autograph=False)
        concrete = traced.get_concrete_function()
        tf.lite.TFLiteConverter.from_concrete_functions([concrete], function).convert()
    except Exception:  # the first conversion has failed, too: its words are what is reported
        return False
    return True


def _types(graph):
    """The types of all tensors in a graph and in the functions that it calls."""
    return {
        tf.as_dtype(kind.type)
        for function in graph.as_graph_def().library.function
        for node in function.node_def
        for kind in node.attr.values()
        if kind.type
    } | {tensor.dtype for operation in graph.get_operations() for tensor in operation.outputs}
