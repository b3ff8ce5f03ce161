"""Private parts of how Keras saves, exports and seeds."""

from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.export.export_utils import (
    get_input_signature,
    make_input_spec,
    make_tf_tensor_spec,
)
from keras.src.models.functional import Functional
from keras.src.random.seed_generator import global_seed_generator
from keras.src.utils.python_utils import default

from keras_lowrank.keras_internals.layers import states

__all__ = [
    "default",  # marks a `get_config` that leaves the arguments of `__init__` to Keras
    "global_seed",
    "input_signature",
    "is_saving_hdf5",
    "make_global_seed",
    "tensor_spec",
]


def input_signature(model: keras.Model) -> list[Any]:
    """Returns the inputs of `model` as the list of arguments that an export archive takes.

    The batch size is free, as in Keras, unless a layer keeps a state for each example.
    """
    if isinstance(model, Functional):
        # Up to Keras 3.8 its own function loses the names of a dictionary of inputs.
        specs = keras.tree.map_structure(make_input_spec, model._inputs_struct)
        if states(model):
            for spec, given in zip(*map(keras.tree.flatten, (specs, model._inputs_struct))):
                spec.shape = given.shape
        return [specs]
    return get_input_signature(model)


def tensor_spec(given: Any) -> tf.TensorSpec:
    """Returns the `tf.TensorSpec` of anything that Keras accepts in an `input_signature`."""
    return make_tf_tensor_spec(given)


def is_saving_hdf5() -> bool:
    """Whether Keras is writing a whole model in its older format."""
    return bool(get_global_attribute("use_legacy_config"))


def global_seed() -> keras.Variable | None:
    """Returns the variable behind random numbers without a seed; None before the first of them.

    Keras's own function would make it, with a draw from Python's generator that shifts all later
    draws.
    """
    generator = get_global_attribute("global_seed_generator")  # has no constant in Keras 3.8
    return None if generator is None else generator.state


def make_global_seed() -> keras.Variable:
    """Returns the same variable, and makes it where there is none."""
    return global_seed_generator().state
