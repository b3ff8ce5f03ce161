"""ONNX: one file, as onnxruntime and many accelerators read it. Needs the extra `onnx`.

TensorFlow's graph is converted by tf2onnx. The same weights give the same bytes: constants, which
tf2onnx lists in the order of a Python set, are listed and numbered in the order of their use.
"""

import importlib
import logging

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.export.served import position
from keras_lowrank.tangent import substitute

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
    converter.utils.INTERNAL_NAME = 1  # a counter of the process, which goes into names
    try:
        with substitute(kernels):
            function = tf.function(serve, input_signature=flat)
            model, _ = converter.convert.from_function(function, input_signature=flat)
    except Exception as error:  # tf2onnx raises what its handlers happen to raise
        raise ValueError(
            "ONNX must have an operation for all that the model computes with. "
            f"Received: {str(error).strip().splitlines()[0][:300]}"
        ) from error
    _order_constants(model.graph)
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


def _order_constants(graph):
    used = dict.fromkeys(name for node in _nodes(graph) for name in node.input)
    order = {name: index for index, name in enumerate(used)}
    constants = sorted(graph.initializer, key=lambda constant: order[constant.name])
    names = {constant.name: f"constant_{i}" for i, constant in enumerate(constants)}
    for node in _nodes(graph):
        node.input[:] = [names.get(name, name) for name in node.input]
    for constant in constants:
        constant.name = names[constant.name]
    copies = [type(constant).FromString(constant.SerializeToString()) for constant in constants]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def _nodes(graph):
    """The nodes of a graph, each followed by those of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
