"""Signatures: lists of arguments, each a structure of `tf.TensorSpec`."""

import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank import keras_internals


def standardized(given: Any) -> list:
    """Converts an `input_signature` to a list of arguments with named specs.

    Specs without a name get the names of Keras's exports: `args_0`, `args_0_1`, ...

    Args:
        given: list of arguments, or one argument, as in `keras.Model.export`. The leaves are
            `keras.InputSpec`, `tf.TensorSpec`, `keras.KerasTensor` or tensors.

    Returns:
        List of arguments, structures of `tf.TensorSpec`.
    """
    arguments = list(given) if isinstance(given, (list, tuple)) else [given]
    taken: set[str] = set()
    return [_named(argument, f"args_{index}", taken) for index, argument in enumerate(arguments)]


def with_batch_size(signature: list, size: int | None) -> list:
    """Returns the signature with this batch size for all inputs, None for an open one."""
    return keras.tree.map_structure(lambda spec: _spec(spec, (size, *spec.shape[1:])), signature)


def with_extents(signature: list, extent: int) -> list:
    """Returns the signature with all open extents fixed, except the batch size."""
    return keras.tree.map_structure(
        lambda spec: _spec(spec, (*spec.shape[:1], *(one or extent for one in spec.shape[1:]))),
        signature,
    )


def with_shapes(signature: list, shapes: list[tuple[str | None, list[int]]]) -> list:
    """Returns the signature with other shapes of its inputs.

    Args:
        signature: list of arguments.
        shapes: list of `(name, shape)`, without the batch size. Shapes with the name None belong to
            the inputs in order.

    Raises:
        ValueError: a name is unknown, or there are more shapes than inputs.
    """
    names = [spec.name for spec in keras.tree.flatten(signature)]
    inputs = iter(names)
    chosen = {name or next(inputs, None): tuple(shape) for name, shape in shapes}
    if len(chosen) < len(shapes) or not set(chosen) <= set(names):
        raise ValueError(
            f"The shapes must be those of the inputs {', '.join(names)}, in order or by name. "
            f"Received: {', '.join(str(name or shape) for name, shape in shapes)}"
        )
    return keras.tree.map_structure(
        lambda spec: _spec(spec, (*spec.shape[:1], *chosen.get(spec.name, spec.shape[1:]))),
        signature,
    )


def is_open(signature: list) -> bool:
    """Whether an extent other than the batch size is open."""
    return any(None in tuple(spec.shape[1:]) for spec in keras.tree.flatten(signature))


def written(signature: Any) -> str:
    """Returns the signature as Python code."""

    def code(spec: tf.TensorSpec) -> str:
        return f"tf.TensorSpec({tuple(spec.shape)}, {spec.dtype.name!r}, {spec.name!r})"

    if isinstance(signature, dict):
        return "{{{}}}".format(", ".join(f"{k!r}: {written(v)}" for k, v in signature.items()))
    if isinstance(signature, (list, tuple)):
        return "[{}]".format(", ".join(map(written, signature)))
    return code(signature)


def _named(argument: Any, prefix: str, taken: set[str]) -> Any:
    specs = []
    for index, given in enumerate(keras.tree.flatten(argument)):
        spec = keras_internals.tensor_spec(given)
        name = spec.name or (f"{prefix}_{index}" if index else prefix)
        name = re.sub(r"\W", "_", name)  # TensorFlow needs Python names
        while name in taken:
            name += "_"
        taken.add(name)
        specs.append(tf.TensorSpec(spec.shape, spec.dtype, name))
    return keras.tree.pack_sequence_as(argument, specs)


def _spec(spec: tf.TensorSpec, shape: Sequence) -> tf.TensorSpec:
    return tf.TensorSpec(shape, spec.dtype, spec.name)
