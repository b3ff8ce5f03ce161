"""Private parts of Keras's layers and variables."""

from collections.abc import Sequence

import keras
import tensorflow as tf
from keras.src.backend.common.masking import set_keras_mask
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.tensorflow.rnn import rnn

__all__ = [
    "all_layers",
    "become",
    "in_stateless_scope",  # `Variable.assign` must know it
    "is_built",
    "is_called_with",
    "made_to_train",
    "open_variable",
    "own_variables",
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


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables that a layer holds itself, and not in other layers."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def states(model: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the states of stateful recurrent layers, which `model.variables` leaves out."""
    layers = [layer for layer in all_layers(model) if getattr(layer, "stateful", False)]
    found = keras.tree.flatten([getattr(layer, "states", None) for layer in layers])
    return [state for state in found if isinstance(state, keras.Variable)]


# Where a layer is, and not what it is: graphs, scopes, and what it was called with.
_PLACE = (
    "_inbound_nodes",
    "_outbound_nodes",
    "_path",
    "_parent_path",
    "_called",
    "_build_shapes_dict",
)


def become(layer: keras.layers.Layer, twin: keras.layers.Layer) -> None:
    """Makes a built layer what its twin is, in its own place.

    Layers and models that hold the layer still hold it. No tracker, which Keras locks once a layer
    is built, is told of it. Attributes that others have set on the layer stay.

    Args:
        layer: built layer.
        twin: built layer of the class that `layer` gets. Do not use it any more.
    """
    before, after = vars(layer), dict(vars(twin))
    after.update((name, before[name]) for name in _PLACE if name in before)
    # `Layer.__new__` wraps these methods of the class that an object was made as.
    for name in ("build", "quantize"):
        after.pop(name, None)
    for name, value in before.items():
        held = isinstance(value, (keras.Variable, keras.layers.Layer)) or name in after
        if not (held or name in ("build", "quantize") or hasattr(type(twin), name)):
            after[name] = value
    before.clear()
    before.update(after)
    object.__setattr__(layer, "__class__", type(twin))


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


def attach(layer: keras.layers.Layer, name: str, part: keras.layers.Layer) -> None:
    """Puts a layer into an attribute of a built one, whose tracker Keras has locked by then."""
    layer._tracker.unlock()
    setattr(layer, name, part)
    layer._tracker.lock()


def detach(layer: keras.layers.Layer, name: str) -> None:
    """Takes away what `attach` has put there."""
    part = getattr(layer, name)
    layer._tracker.unlock()
    layer._layers.remove(part)
    layer._tracker.stored_ids["layers"].discard(id(part))
    delattr(layer, name)
    layer._tracker.lock()
