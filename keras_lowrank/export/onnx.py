"""ONNX: one file, for onnxruntime and many accelerators. Needs the extra `onnx`.

tf2onnx converts TensorFlow's graph. The same weights give the same bytes: tf2onnx orders nodes by a
Python set and names them with a counter, so both are redone in the order of use.
"""

import importlib
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.error_reason import reason
from keras_lowrank.export.onnx_operations import HANDLERS
from keras_lowrank.export.served import Served, position
from keras_lowrank.kernels.kernel_override import ProductKernel, override_kernels
from keras_lowrank.manifold.factors import Factors

SUFFIX = ".onnx"
LOADING = """\
import onnxruntime

session = onnxruntime.InferenceSession({name!r})
outputs = session.run(None, inputs)  # arrays by name
"""


def trace(
    served: Served, kernels: dict[Factors, ProductKernel]
) -> tf.types.experimental.GenericFunction:
    """Traces the exported function, with `kernels` instead of the factors.

    Returns:
        `tf.function` with flat arguments. Its outputs are named by their keys, or `output_0`,
        `output_1`, ..., as in a SavedModel.
    """

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        with override_kernels(kernels):
            outputs = served(*keras.tree.pack_sequence_as(served.signature, tensors))
        return dict(zip(_output_names(outputs), keras.tree.flatten(outputs)))

    flat = keras.tree.flatten(served.signature)
    function = tf.function(serve, input_signature=flat, autograph=False)
    function.get_concrete_function()
    return function


def write(
    served: Served,
    function: tf.types.experimental.GenericFunction,
    path: pathlib.Path,
    opset_version: int | None = None,
) -> None:
    """Writes a traced function to a file.

    Args:
        served: `Served`.
        function: `tf.function`, as `trace` returns it.
        path: `pathlib.Path` of the file.
        opset_version: int or None, the version of ONNX's operations. None is tf2onnx's default.

    Raises:
        ImportError: a package for ONNX is not installed.
        ValueError: ONNX or tf2onnx lacks an operation.
    """
    converter, onnx = _package("tf2onnx"), _package("onnx")
    graph = function.get_concrete_function().graph
    _inline_xla(graph)
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # failures are raised below
    try:
        model, _ = converter.convert.from_function(
            function,
            input_signature=keras.tree.flatten(served.signature),
            opset=opset_version,
            custom_op_handlers=HANDLERS,
        )
    except Exception as error:  # of any class that its handlers raise
        raise ValueError(
            "ONNX must have an operation for everything that the model computes. "
            f"Received: {reason(error)}"
        ) from error
    finally:
        logger.setLevel(level)
    _embed_constants(model.graph, graph, onnx)
    _check_operations(model, onnx)
    _renumber(model.graph)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _inline_xla(graph: tf.Graph) -> None:
    """Lets tf2onnx inline functions that XLA compiles, such as Keras's grouped convolutions."""
    for operation in graph.get_operations():
        if "_XlaMustCompile" in operation.node_def.attr:
            operation._clear_attr("_XlaMustCompile")


def _embed_constants(made: Any, traced: tf.Graph, onnx: Any) -> None:
    """Turns the tensors that the traced graph captured from inputs into constants."""
    constants = {
        placeholder.name: value.numpy()
        for value, placeholder in traced.captures
        if value.dtype != tf.resource
    }
    for entry in [one for one in made.input if one.name in constants]:
        made.initializer.append(onnx.numpy_helper.from_array(constants[entry.name], entry.name))
        made.input.remove(entry)


def _check_operations(model: Any, onnx: Any) -> None:
    """Raises ValueError if tf2onnx left an operation of TensorFlow in the file."""
    left = dict.fromkeys(
        node.op_type
        for graph in _graphs(model.graph)
        for node in graph.node
        if not node.domain and not onnx.defs.has(node.op_type)
    )
    if left:
        raise ValueError(
            "ONNX must have an operation for everything that the model computes, and tf2onnx must "
            f"know it. Replace these with other operations. Received: {', '.join(left)}"
        )


def load(
    served: Served, function: tf.types.experimental.GenericFunction, path: pathlib.Path
) -> Callable[..., list[np.ndarray]]:
    """Loads a file that `write` wrote.

    Returns:
        Callable from the arguments to the flat list of outputs, as arrays.

    Raises:
        ValueError: onnxruntime cannot run the file.
    """
    runtime = _package("onnxruntime")
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has many classes
        raise ValueError(
            "onnxruntime must be able to run the file. Try another `opset_version`. "
            f"Received: {reason(error)}"
        ) from error
    names = served.names
    outputs = sorted((entry.name for entry in session.get_outputs()), key=position)

    def run(*arguments: Any) -> list[np.ndarray]:
        arrays = map(np.asarray, keras.tree.flatten(arguments))
        return session.run(outputs, dict(zip(names, arrays, strict=True)))

    return run


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            "format='onnx' needs the packages onnx, onnxruntime and tf2onnx: "
            f"`pip install 'keras_lowrank[onnx]'`. Received: {error}"
        ) from error


def _output_names(outputs: Any) -> list[str]:
    if isinstance(outputs, dict) and not any(map(keras.tree.is_nested, outputs.values())):
        return sorted(outputs)
    return [f"output_{index}" for index in range(len(keras.tree.flatten(outputs)))]


def _renumber(graph: Any) -> None:
    """Names and orders everything but the graph's inputs and outputs by first use."""
    graphs = list(_graphs(graph))
    nodes = [node for one in graphs for node in one.node]
    keep = {"", *(entry.name for entry in (*graph.input, *graph.output))}
    used = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output))
    names = {name: f"tensor_{index}" for index, name in enumerate(used) if name not in keep}
    constants = {constant.name: constant for constant in graph.initializer}
    ordered = [
        type(constants[name]).FromString(constants[name].SerializeToString())
        for name in used
        if name in constants
    ]
    del graph.initializer[:]
    graph.initializer.extend(ordered)
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}_{index}"
        for part in (node.input, node.output):
            part[:] = [names.get(name, name) for name in part]
    graph.doc_string = ""
    for entry in (*graph.input, *graph.output):
        for axis, extent in enumerate(entry.type.tensor_type.shape.dim):
            if extent.dim_param:
                extent.dim_param = f"{entry.name}_{axis}" if axis else "batch"
    for one in graphs:
        for entry in (*one.input, *one.output, *one.initializer, *one.value_info):
            entry.name = names.get(entry.name, entry.name)


def _graphs(graph: Any) -> Iterator[Any]:
    """Yields a graph, and those inside its nodes, at every depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _graphs(inner)
