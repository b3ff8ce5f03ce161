"""TensorFlow SavedModel: a folder, for TF Serving and `tf.saved_model.load`.

Two exports of the same weights have the same arrays and graph, bit for bit, but not the same bytes:
TensorFlow orders the variables by a Python set and counts the names of functions, and
`fingerprint.pb` is a hash of both.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.saved_model.experimental import TrackableResource

from keras_lowrank.export.served import Served
from keras_lowrank.kernels.kernel_override import ProductKernel, override_kernels
from keras_lowrank.manifold.factors import Factors

SUFFIX = ""
LOADING = """\
import tensorflow as tf

model = tf.saved_model.load({name!r})
outputs = model.signatures["serving_default"](**inputs)  # tensors by name
"""


def trace(
    served: Served, kernels: dict[Factors, ProductKernel]
) -> tf.types.experimental.GenericFunction:
    """Traces the exported function, with `kernels` instead of the factors.

    Returns:
        `tf.function`. Its `python_function` also uses `kernels`, in any later trace.
    """

    def serve(*arguments: Any) -> Any:
        with override_kernels(kernels):
            return served(*arguments)

    function = tf.function(serve, input_signature=served.signature, autograph=False)
    function.get_concrete_function()
    return function


def write(
    served: Served, function: tf.types.experimental.GenericFunction, path: str | os.PathLike
) -> None:
    """Writes a traced function to a folder.

    The folder contains only the variables and tables that the function reads: no factors and no
    optimizer state.

    Args:
        served: `Served`.
        function: `tf.function`, as `trace` returns it.
        path: str or path of the folder.

    Raises:
        ValueError: the function reads a resource that no layer has as an attribute.
    """
    concrete = function.get_concrete_function()
    artefact = tf.Module()
    artefact.serve = function
    artefact.held = [*concrete.variables, *_tables(served, concrete.graph)]
    signatures = {"serve": concrete, "serving_default": concrete}
    tf.saved_model.save(artefact, str(path), signatures=signatures)


def _tables(served: Served, graph: tf.Graph) -> Iterable[TrackableResource]:
    """The lookup tables, and other resources except variables, that a graph reads."""
    variables = {id(variable.handle) for variable in graph.variables}
    needed = {
        id(given)
        for given, _ in graph.captures
        if given.dtype == tf.resource and id(given) not in variables
    }
    found = {}
    for layer in served.layers if needed else ():
        for one in tf.train.TrackableView(layer).descendants():
            if isinstance(one, TrackableResource) and id(one.resource_handle) in needed:
                found[id(one.resource_handle)] = one
    if needed - set(found):
        raise ValueError(
            "A lookup table, or another TensorFlow resource that the model reads, must be an "
            "attribute of one of its layers to be exported. "
            f"Received: {len(needed) - len(found)} that no layer has"
        )
    return found.values()


def load(
    served: Served, function: tf.types.experimental.GenericFunction, path: str | os.PathLike
) -> Callable[..., list[np.ndarray]]:
    """Loads a folder that `write` wrote.

    Returns:
        Callable from the arguments to the flat list of outputs, as arrays.
    """
    artefact = tf.saved_model.load(str(path))  # owns the variables of its functions

    def run(*arguments: Any) -> list[np.ndarray]:
        return [output.numpy() for output in keras.tree.flatten(artefact.serve(*arguments))]

    return run
