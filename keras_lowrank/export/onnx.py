"""ONNX: one file, as onnxruntime and many accelerators read it. Needs the extra `onnx`.

TensorFlow's graph is converted by tf2onnx. The same weights give the same bytes: what tf2onnx
lists in the order of a Python set, and names by a counter, is listed and named by its use.
"""

import importlib
import logging

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.error_reason import reason
from keras_lowrank.export.onnx_operations import HANDLERS
from keras_lowrank.export.served import position
from keras_lowrank.kernels.kernel_override import override_kernels

SUFFIX = ".onnx"


def trace(served, kernels):
    """A traced `tf.function` of what is served, with `kernels` in place of the factors.

    Its arguments are flat; its outputs are called by their keys, or `output_0`, `output_1`, ...,
    as in a SavedModel.
    """

    def serve(*tensors):
        with override_kernels(kernels):
            outputs = served(*keras.tree.pack_sequence_as(served.signature, tensors))
        return dict(zip(_output_names(outputs), keras.tree.flatten(outputs)))

    flat = keras.tree.flatten(served.signature)
    function = tf.function(serve, input_signature=flat, autograph=False)
    function.get_concrete_function()
    return function


def write(served, function, path, opset_version=None):
    """Writes a function that `trace` has made to the file `path`.

    Args:
        served: `Served`.
        function: traced `tf.function`.
        path: `pathlib.Path`.
        opset_version: int or None, the version of ONNX's operations; None is tf2onnx's own.
    """
    converter, onnx = _package("tf2onnx"), _package("onnx")
    graph = function.get_concrete_function().graph
    _open_calls(graph)
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what it cannot do is told below
    try:
        model, _ = converter.convert.from_function(
            function,
            input_signature=keras.tree.flatten(served.signature),
            opset=opset_version,
            custom_op_handlers=HANDLERS,
        )
    except Exception as error:  # tf2onnx raises what its handlers happen to raise
        raise ValueError(
            "ONNX must have an operation for all that the model computes. "
            f"Received: {reason(error)}"
        ) from error
    finally:
        logger.setLevel(level)
    _hold_constants(model.graph, graph, onnx)
    _check_operations(model, onnx)
    _renumber(model.graph)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _open_calls(graph):
    """Has functions that XLA compiles, as Keras's grouped convolutions are, put in line."""
    for operation in graph.get_operations():
        if "_XlaMustCompile" in operation.node_def.attr:
            operation._clear_attr("_XlaMustCompile")


def _hold_constants(made, traced, onnx):
    """Makes constants of the tensors that the traced graph has captured, which are no inputs."""
    constants = {
        placeholder.name: value.numpy()
        for value, placeholder in traced.captures
        if value.dtype != tf.resource
    }
    for entry in [one for one in made.input if one.name in constants]:
        made.initializer.append(onnx.numpy_helper.from_array(constants[entry.name], entry.name))
        made.input.remove(entry)


def _check_operations(model, onnx):
    """Raises where tf2onnx has left an operation of TensorFlow that it knows no other for."""
    left = dict.fromkeys(
        node.op_type
        for graph in _graphs(model.graph)
        for node in graph.node
        if not node.domain and not onnx.defs.has(node.op_type)
    )
    if left:
        raise ValueError(
            "ONNX must have an operation for all that the model computes, and tf2onnx must know "
            f"it. Write these with other operations. Received: {', '.join(left)}"
        )


def load(served, function, path):
    """A callable: the arguments in, the flat list of outputs as arrays out."""
    runtime = _package("onnxruntime")
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each
        raise ValueError(
            "onnxruntime must be able to run the file; another `opset_version` may be one that it "
            f"knows. Received: {reason(error)}"
        ) from error
    names = served.names
    outputs = sorted((entry.name for entry in session.get_outputs()), key=position)

    def run(*arguments):
        arrays = map(np.asarray, keras.tree.flatten(arguments))
        return session.run(outputs, dict(zip(names, arrays, strict=True)))

    return run


def _package(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            "format='onnx' needs the packages onnx, onnxruntime and tf2onnx. Install them by "
            f"`pip install 'keras_lowrank[onnx]'`. Received: {error}"
        ) from error


def _output_names(outputs):
    if isinstance(outputs, dict) and not any(map(keras.tree.is_nested, outputs.values())):
        return sorted(outputs)
    return [f"output_{index}" for index in range(len(keras.tree.flatten(outputs)))]


def _renumber(graph):
    """Names and lists all inside a graph, but its inputs and outputs, in the order of use."""
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


def _graphs(graph):
    """A graph, and those inside its nodes, at every depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _graphs(inner)
