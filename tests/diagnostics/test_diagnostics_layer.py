"""The check of a layer: those of the package pass, and planted faults are named.

What is planted is what a user may get wrong.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowrank
from keras_lowrank import LowRankDense, LowRankLayer
from keras_lowrank.diagnostics import check_layer


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


LAYERS = {
    "Dense": ((4,), normal(3, 8)),
    "Conv1D": ((4, 3), normal(2, 7, 3)),
    "Conv2D": ((4, (3, 2), 2, "same"), normal(2, 7, 7, 3)),
    "Conv3D": ((4, 2), normal(2, 4, 4, 4, 3)),
    "Conv2DTranspose": ((4, 3, 2), normal(2, 5, 5, 3)),
    "EinsumDense": (("abc,cde->abde", (None, 2, 3), "relu", "d"), normal(2, 3, 5)),
    "Embedding": ((9, 6), np.array([[3, 1], [4, 1]])),
    "LSTM": ((4,), normal(2, 5, 6)),
    "GRU": ((4,), normal(2, 5, 6)),
    "MultiHeadAttention": ((2, 3), normal(2, 5, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_layers_of_the_package_pass(name):
    arguments, inputs = LAYERS[name]
    layer = getattr(keras_lowrank, f"LowRank{name}")(*arguments, rank=2)
    extra = {"value": normal(2, 4, 6)} if name == "MultiHeadAttention" else {}
    check_layer(layer, inputs, **extra)
    before = layer.get_weights()
    check_layer(layer, inputs, **extra)
    assert all(map(np.array_equal, before, layer.get_weights()))


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16"])
def test_a_layer_is_checked_in_its_precision(dtype):
    check_layer(LowRankDense(4, rank=2, dtype=dtype), normal(3, 8))


class Times(LowRankLayer):
    """A layer of a user's own, from which each wrong one differs in one point."""

    def __init__(self, units, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.units, self.scale = units, scale

    def build(self, input_shape):
        self.build_factors((input_shape[-1], self.units))

    def project(self, inputs, basis):
        return self.scale * keras.ops.matmul(inputs, basis)

    def expand(self, coordinates, basis):
        return keras.ops.matmul(coordinates, keras.ops.transpose(basis))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "scale": self.scale}


def product(inputs, basis):
    return keras.ops.matmul(inputs, basis)


def transposed(basis):
    return keras.ops.transpose(basis)


def without(name):
    def get_config(self):
        config = Times.get_config(self)
        del config[name]
        return config

    return get_config


def of_static_batch(self, inputs):
    return tf.reshape(Times.call(self, inputs), [*inputs.shape[:-1], self.units])


WRONG_LAYERS = {
    "bias": ({"project": lambda self, x, b: product(x, b) + 1.0}, "`project` adds no constant"),
    "nonlinear": (
        {"project": lambda self, x, b: product(keras.ops.relu(x), b)},
        "`project` is linear in its inputs",
    ),
    "columns": (
        {"project": lambda self, x, b: product(x, b[:, ::-1])},
        "`project` is linear in the basis, column by column",
    ),
    "first": (
        {"project": lambda self, x, b: transposed(product(x, b))},
        r"on the last axis. Received: shape \(5, 3\) for 5 columns",
    ),
    "left": ({"project": lambda self, x, b: product(transposed(b), x)}, "`project` takes inputs"),
    "transposed": ({"expand": lambda self, z, b: product(z, b)}, r"`expand` takes .* \(m, k\)"),
    "mirrored": (
        {"expand": lambda self, z, b: product(z[..., ::-1], transposed(b))},
        "`expand` takes a basis as V",
    ),
    "shifted": (
        {"expand": lambda self, z, b: product(z, transposed(b)) + 1.0},
        "`expand` adds no constant",
    ),
    "cut": (
        {"project": lambda self, x, b: product(x, tf.stop_gradient(b))},
        "has a gradient by U. Received: None",
    ),
    "halved": (
        {"expand": lambda self, z, b: product(z, transposed(0.5 * b + tf.stop_gradient(0.5 * b)))},
        "The gradient by V is correct",
    ),
    "formed": (
        {"call": lambda self, x: product(x, self.kernel)},
        "`call` uses `apply_kernel`",
    ),
    "unbuilt": ({"build": lambda self, shape: None}, "has called `build_factors`"),
    "shape": (
        {"compute_output_shape": lambda self, shape: shape},
        "have the shape of `compute_output",
    ),
    "type": (
        {"call": lambda self, x: tf.cast(Times.call(self, x), "float64")},
        "The outputs have .* and the dtype of the policy",
    ),
    "static": ({"call": of_static_batch}, "can be traced by TensorFlow for any batch size"),
    "config": ({"get_config": without("units")}, "`get_config` has all arguments.*units"),
    "default": ({"get_config": without("scale")}, "A layer from the config returns the same"),
}


def test_a_layer_of_ones_own_passes():
    check_layer(Times(4, 2.0, rank=2), normal(3, 8))


@pytest.mark.parametrize("name", WRONG_LAYERS)
def test_a_wrong_layer_is_told_what_is_wrong(name):
    methods, words = WRONG_LAYERS[name]
    with pytest.raises(ValueError, match=rf"Wrong 'wrong' breaks these rules:\n.*{words}"):
        check_layer(type("Wrong", (Times,), methods)(4, 2.0, rank=2), normal(3, 8))


def test_a_layer_that_is_not_low_rank_is_told():
    with pytest.raises(ValueError, match="The layer is low-rank, or contains a layer that is"):
        check_layer(keras.layers.Dense(4), normal(3, 8))
