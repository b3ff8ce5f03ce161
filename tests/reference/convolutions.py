"""Convolutions of Keras beside low-rank ones, in any of their forms."""

import keras
import numpy as np


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def with_kernel_of(layer, channels, **arguments):
    conv = keras.layers.Conv2D(layer.filters, layer.kernel_size, **arguments)
    conv.build((None, None, None, channels))
    conv.set_weights([layer.kernel, layer.bias])
    return conv


def network(conv, **options):
    inputs = keras.Input((7, 6, 3))
    x = conv(8, 3, padding="same", activation="tanh", name="one", **options)(inputs)
    x = conv(9, (2, 3), strides=2, padding="same", name="two", **options)(x)
    return inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
