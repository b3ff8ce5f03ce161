"""TensorFlow SavedModel: a folder, as TF Serving and `tf.saved_model.load` read it.

Two exports of the same weights hold the same arrays and the same graph, bit for bit, in files that
are not the same bytes: TensorFlow numbers the variables in the order of a Python set and puts a
counter of the process into the names of functions; `fingerprint.pb` is a hash over both.
"""

import contextlib
import io

import keras
import tensorflow as tf

from keras_lowrank.substitution import substitute

SUFFIX = ""


def write(served, kernels, path):
    """Writes what is served, with `kernels` in place of the factors, to the folder `path`."""
    archive = keras.export.ExportArchive()
    for layer in served.layers:
        if not layer.variables:
            archive.track(layer)  # for the look-up tables of preprocessing layers
    with substitute(kernels):
        # Only what the traced function reads is written: no factor, no optimizer state.
        archive.add_endpoint("serve", lambda *x: served(*x), served.signature)
        # Older versions of Keras print the place all the same, which is one that will be left.
        with contextlib.redirect_stdout(io.StringIO()):
            archive.write_out(str(path), verbose=False)  # traces, so inside the substitution


def load(served, path):
    """A callable: the arguments in, the flat list of outputs as arrays out."""
    artefact = tf.saved_model.load(str(path))  # held: it owns the variables of its functions

    def run(*arguments):
        return [output.numpy() for output in keras.tree.flatten(artefact.serve(*arguments))]

    return run


def signature_names(path):
    """The names of the inputs of `serving_default`."""
    artefact = tf.saved_model.load(str(path))
    return list(artefact.signatures["serving_default"].structured_input_signature[1])
