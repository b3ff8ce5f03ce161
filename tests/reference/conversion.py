"""Models for the tests of conversion, and comparisons of a model with its copy."""

import keras
import numpy as np
from keras import layers

from keras_lowrank import (
    from_keras,
)

rng = np.random.default_rng(0)


def draw(*shape):
    return rng.standard_normal(shape).astype("float32")


def full(model, **arguments):
    """The low-rank model at full rank."""
    return from_keras(model, tolerance=0.0, only_smaller=False, **arguments)


def check_same(model, other, inputs):
    before, after = (keras.tree.flatten(one(inputs, training=False)) for one in (model, other))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())


def randomize(model):
    """Sets random weights: with zero biases, errors would go unseen."""
    for variable in model.weights:
        if "float" in variable.dtype:
            variable.assign(np.abs(draw(*variable.shape)) * 0.3 + 0.1 * draw(*variable.shape))
    return model


def functional():
    """A functional model with convolutions, normalization, an operation, a lambda, a branch."""
    inputs = keras.Input((9, 8, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="stem")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    y = layers.Conv2D(8, (2, 3), dilation_rate=2, padding="same", use_bias=False, name="conv")(x)
    x = keras.ops.relu(x + y) * 2.0
    x = layers.Lambda(lambda t: t - LIMIT, name="shift")(x)
    x = layers.Dropout(0.5)(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="mine")


LIMIT = 0.25  # a global that the lambda reads


def nested_and_shared(across=True):
    """A model with two inputs and outputs, a nested model called twice and a shared layer."""
    shared = layers.Dense(6, activation="tanh", name="shared")
    tower = keras.Sequential([layers.Dense(6, name="first"), shared], name="tower")
    inner_inputs = keras.Input((6,))
    x = layers.Dense(6, name="inside")(shared(inner_inputs) if across else inner_inputs)
    inner = keras.Model(inner_inputs, [x, inner_inputs + x], name="inner")
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    left, right = tower(a), tower(shared(b) if across else b)
    first, second = inner(layers.Add()([left, right]))
    outputs = {"p": layers.Dense(3, name="p")(first), "q": layers.Dense(2, name="q")(second)}
    return keras.Model({"a": a, "b": b}, outputs)
