"""ONNX: one file, as onnxruntime and many accelerators read it. Needs the extra `onnx`.

TensorFlow's graph is converted by tf2onnx. The same weights give the same bytes: what tf2onnx
lists in the order of a Python set, and names by a counter, is listed and named by its use.
"""

import importlib
import logging

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.export.served import position
from keras_lowrank.substitution import substitute

SUFFIX = ".onnx"


def write(served, kernels, path):
    """Writes what is served, with `kernels` in place of the factors, to the file `path`.

    Inputs keep their names (`x_0`, `x_1`, ... without one); outputs are called by their keys, or
    `output_0`, `output_1`, ..., as in a SavedModel.
    """
    converter = _package("tf2onnx")
    _package("onnx")
    flat = [
        tf.TensorSpec(spec.shape, spec.dtype, name)
        for spec, name in zip(keras.tree.flatten(served.signature), _input_names(served))
    ]

    def serve(*tensors):
        outputs = served(*keras.tree.pack_sequence_as(served.signature, tensors))
        return dict(zip(_output_names(outputs), keras.tree.flatten(outputs)))

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    try:
        with substitute(kernels):
            function = tf.function(serve, input_signature=flat)
            model, _ = converter.convert.from_function(function, input_signature=flat)
    except Exception as error:  # tf2onnx raises what its handlers happen to raise
        raise ValueError(
            "ONNX must have an operation for all that the model computes with. "
            f"Received: {str(error).strip().splitlines()[0][:300]}"
        ) from error
    _renumber(model.graph)
    path.write_bytes(model.SerializeToString(deterministic=True))


def load(served, path):
    """A callable: the arguments in, the flat list of outputs as arrays out."""
    session = _package("onnxruntime").InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    names = _input_names(served)
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


def _input_names(served):
    return [name or f"x_{index}" for index, name in enumerate(served.names)]


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
