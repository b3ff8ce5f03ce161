"""What an artefact is called with: a list of arguments, each a structure of `tf.TensorSpec`."""

import re

import keras
import tensorflow as tf

from keras_lowrank import keras_internals


def standardized(given):
    """The list of arguments that an `input_signature` means, all of its specs named.

    Args:
        given: as in `keras.Model.export`: a list of arguments, or one argument. Its leaves are
            `keras.InputSpec`, `tf.TensorSpec`, `keras.KerasTensor` or tensors.

    Specs without a name get the one that Keras's exports give them: `args_0`, `args_0_1`, ...
    """
    arguments = list(given) if isinstance(given, (list, tuple)) else [given]
    taken = set()
    return [_named(argument, f"args_{index}", taken) for index, argument in enumerate(arguments)]


def with_batch_size(signature, size):
    """The signature with one batch size for all inputs, None for a free one."""
    return keras.tree.map_structure(lambda spec: _spec(spec, (size, *spec.shape[1:])), signature)


def with_extents(signature, extent):
    """The signature with `extent` in the place of all that is free, but the batch size."""
    return keras.tree.map_structure(
        lambda spec: _spec(spec, (*spec.shape[:1], *(one or extent for one in spec.shape[1:]))),
        signature,
    )


def with_shapes(signature, shapes):
    """The signature with the shapes of its inputs, without the batch size, as a user lists them.

    Args:
        signature: list of arguments.
        shapes: list of `(name, shape)`. Those without a name, None, are those of the inputs in
            their order.

    Raises:
        ValueError: a name or a number of shapes that the inputs have not.
    """
    names = [spec.name for spec in keras.tree.flatten(signature)]
    inputs = iter(names)
    chosen = {name or next(inputs, None): tuple(shape) for name, shape in shapes}
    if len(chosen) < len(shapes) or not set(chosen) <= set(names):
        raise ValueError(
            f"The shapes must be those of the inputs {', '.join(names)}, in this order or by name. "
            f"Received: {', '.join(str(name or shape) for name, shape in shapes)}"
        )
    return keras.tree.map_structure(
        lambda spec: _spec(spec, (*spec.shape[:1], *chosen.get(spec.name, spec.shape[1:]))),
        signature,
    )


def is_free(signature):
    """Whether an extent other than the batch size is free."""
    return any(None in tuple(spec.shape[1:]) for spec in keras.tree.flatten(signature))


def written(signature):
    """The signature as Python code."""

    def code(spec):
        return f"tf.TensorSpec({tuple(spec.shape)}, {spec.dtype.name!r}, {spec.name!r})"

    if isinstance(signature, dict):
        return "{{{}}}".format(", ".join(f"{k!r}: {written(v)}" for k, v in signature.items()))
    if isinstance(signature, (list, tuple)):
        return "[{}]".format(", ".join(map(written, signature)))
    return code(signature)


def _named(argument, prefix, taken):
    specs = []
    for index, given in enumerate(keras.tree.flatten(argument)):
        spec = keras_internals.tensor_spec(given)
        name = spec.name or (f"{prefix}_{index}" if index else prefix)
        name = re.sub(r"\W", "_", name)  # TensorFlow names arguments as Python does
        while name in taken:
            name += "_"
        taken.add(name)
        specs.append(tf.TensorSpec(spec.shape, spec.dtype, name))
    return keras.tree.pack_sequence_as(argument, specs)


def _spec(spec, shape):
    return tf.TensorSpec(shape, spec.dtype, spec.name)
