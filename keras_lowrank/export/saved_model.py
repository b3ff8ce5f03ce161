"""TensorFlow SavedModel: a folder, as TF Serving and `tf.saved_model.load` read it.

Two exports of the same weights hold the same arrays and the same graph, bit for bit, in files that
are not the same bytes: TensorFlow numbers the variables in the order of a Python set and puts a
counter of the process into the names of functions; `fingerprint.pb` is a hash over both.
"""

import keras
import tensorflow as tf
from tensorflow.saved_model.experimental import TrackableResource

from keras_lowrank.kernels.kernel_override import override_kernels

SUFFIX = ""


def trace(served, kernels):
    """A traced `tf.function` of what is served, with `kernels` in place of the factors.

    Traced again, by its `python_function`, it has them too.
    """

    def serve(*arguments):
        with override_kernels(kernels):
            return served(*arguments)

    function = tf.function(serve, input_signature=served.signature, autograph=False)
    function.get_concrete_function()
    return function


def write(served, function, path):
    """Writes a function that `trace` has made to the folder `path`.

    Only what it reads is written: no factor, no optimizer state, no table of a layer that only
    training or another model needs.
    """
    concrete = function.get_concrete_function()
    artefact = tf.Module()
    artefact.serve = function
    artefact.held = [*concrete.variables, *_tables(served, concrete.graph)]
    signatures = {"serve": concrete, "serving_default": concrete}
    tf.saved_model.save(artefact, str(path), signatures=signatures)


def _tables(served, graph):
    """The look-up tables, and other resources but variables, that a graph reads."""
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
            "A look-up table or another resource of TensorFlow that the model reads must be an "
            "attribute of one of its layers, for the file to hold it. "
            f"Received: {len(needed) - len(found)} that no layer has"
        )
    return found.values()


def load(served, function, path):
    """A callable: the arguments in, the flat list of outputs as arrays out."""
    artefact = tf.saved_model.load(str(path))  # held: it owns the variables of its functions

    def run(*arguments):
        return [output.numpy() for output in keras.tree.flatten(artefact.serve(*arguments))]

    return run
