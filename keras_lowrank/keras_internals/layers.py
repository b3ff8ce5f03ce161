"""Private parts of Keras's layers and variables."""

from collections.abc import Sequence

import keras
import tensorflow as tf
from keras.src.backend.common.masking import set_keras_mask
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.tensorflow.rnn import rnn

__all__ = [
    "all_layers",
    "in_stateless_scope",  # `Variable.assign` must know it
    "is_built",
    "is_called_with",
    "made_to_train",
    "open_variable",
    "rnn",  # the loop of keras.layers.RNN; its public form only runs whole cells
    "set_keras_mask",  # a layer with two uses has a mask in one of them only
    "states",
    "sublayers",
]


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layers that `layer` holds directly, in the order of attachment.

    `Model.layers` is public, but leaves out layers inside a composite `Layer`.
    """
    return layer._flatten_layers(include_self=False, recursive=False)


def all_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns all layers inside `model`, at every depth."""
    return model._flatten_layers(include_self=False)


def is_built(model: keras.layers.Layer) -> bool:
    """Whether the model and all layers inside it are built."""
    return all(layer.built for layer in model._flatten_layers())


def made_to_train(model: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables made as trainable, frozen now or not; statistics are not among them.

    `trainable_variables` leaves out those of frozen layers.
    """
    return [v for layer in [model, *all_layers(model)] for v in layer._trainable_variables]


def states(model: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the states of stateful recurrent layers, which `model.variables` leaves out."""
    layers = [layer for layer in all_layers(model) if getattr(layer, "stateful", False)]
    found = keras.tree.flatten([getattr(layer, "states", None) for layer in layers])
    return [state for state in found if isinstance(state, keras.Variable)]


def is_called_with(layer: keras.layers.Layer, argument: str) -> bool:
    """Whether a call of `layer` in a graph of layers sets a keyword argument to a true value."""
    return any(node.arguments.kwargs.get(argument) for node in layer._inbound_nodes)


def open_variable(
    variable: keras.Variable, value: tf.Tensor, shape: Sequence[int | None]
) -> tf.Variable:
    """Makes the `tf.Variable` of a Keras variable with open (None) extents in its shape.

    In a SavedModel it has its present shape: Keras makes the variables of one anew and needs a
    full shape.
    """
    made = tf.Variable(
        value,
        shape=tf.TensorShape(shape),
        dtype=variable._dtype,
        trainable=variable.trainable,
        name=variable.name,
        aggregation=variable._map_aggregation(variable.aggregation),
    )

    if hasattr(made, "_write_object_proto"):
        write = made._write_object_proto

        def write_present_shape(proto, options):
            write(proto, options)
            proto.variable.shape.CopyFrom(made.read_value().shape.as_proto())

        made._write_object_proto = write_present_shape
    return made
