"""What counts as a weight is told by what it is for, whatever it is called."""

import math

import keras
import numpy as np
import pytest

from keras_lowrank import (
    LowRankDense,
    LowRankGRU,
    LowRankModel,
    LowRankMultiHeadAttention,
    from_keras,
)

LOW = 2 * (6 + 6)  # of `low`, as factors


class Table(keras.layers.Layer):
    """A layer with one variable of a name, used as a kernel."""

    def __init__(self, variable, trainable_variable=True, **kwargs):
        super().__init__(**kwargs)
        self.variable, self.trainable_variable = variable, trainable_variable

    def build(self, shape):
        self.table = self.add_weight(
            shape=(6, 6), name=self.variable, trainable=self.trainable_variable
        )

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.table)


def adapted():
    layer = keras.layers.Normalization(axis=(1, 2))
    layer.adapt(np.random.default_rng(0).standard_normal((8, 5, 6)))
    return layer


CASES = {
    "bias table": (lambda: Table("relative_position_bias_table"), 36),
    "position bias": (lambda: Table("position_bias"), 36),
    "bias": (lambda: Table("bias"), 36),
    "statistic": (lambda: Table("kernel", trainable_variable=False), 0),
    "frozen": (lambda: Table("kernel", trainable=False), 36),
    "frozen dense": (lambda: keras.layers.Dense(6, trainable=False), 36),
    "normalization": (adapted, 0),
    "layer normalization": (lambda: keras.layers.LayerNormalization(axis=[1, 2]), 0),
    "spectral": (lambda: keras.layers.SpectralNormalization(keras.layers.Dense(6)), 36),
    "einsum": (lambda: keras.layers.EinsumDense("abc,cd->abd", (5, 6), bias_axes="bd"), 36),
    "einsum frozen": (
        lambda: keras.layers.EinsumDense("abc,cd->abd", (5, 6), bias_axes="bd", trainable=False),
        36,
    ),
    "gru": (lambda: keras.layers.GRU(6, return_sequences=True), 2 * 6 * 18),
    "low-rank gru": (lambda: LowRankGRU(6, rank=1, return_sequences=True), None),
    "random": (lambda: keras.layers.Dropout(0.1), 0),
}


def model_with(layer, make=LowRankModel):
    inputs = keras.Input((5, 6))
    return make(inputs, LowRankDense(6, rank=2, name="low")(layer(inputs)))


@pytest.mark.parametrize("case", CASES)
def test_weights_are_counted_and_nothing_else(case):
    make, expected = CASES[case]
    layer = make()
    model = model_with(layer)
    if expected is None:
        low = [one for one in layer._flatten_layers() if isinstance(one, LowRankDense)]
        expected = sum(one.rank * (one.factors.n + one.factors.m) for one in low)
    assert model.compression().factored == LOW + expected
    model.compile(keras.optimizers.Adam(), "mse")
    held = model.compression().training
    extra = sum(one.rank**2 for one in ranks_in(model))
    slots = 0 if not layer.trainable or case == "statistic" else 2 * kernels_in(layer)
    state = sum(math.prod(v.shape) for v in model.optimizer.variables if of_factors(v))
    assert held == LOW + expected + extra + state + slots


def ranks_in(model):
    layers = model._flatten_layers()
    return [one.factors for one in layers if isinstance(one, LowRankDense)]


def kernels_in(layer):
    """The numbers in the plain kernels of a layer."""
    whole = layer._flatten_layers()
    names = ("kernel", "_kernel", "table", "recurrent_kernel")
    plain = [vars(one).get(name) for one in whole for name in names]
    plain = {id(v): v for v in plain if isinstance(v, keras.Variable)}  # a wrapper may have it too
    return sum(math.prod(v.shape) for v in plain.values())


def of_factors(variable):
    return type(variable).__name__ == "RankVariable" and len(variable.shape) == 2


def test_biases_of_several_axes_are_left_out_everywhere():
    inputs = keras.Input((5, 6))
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    low = LowRankMultiHeadAttention(2, 3, rank={"query": 2}, name="low")
    model = LowRankModel(inputs, low(attention(inputs, inputs), inputs))
    assert model.compression().factored == 4 * 36 + 3 * 36 + LOW
    plain = keras.Model(inputs, attention(inputs, inputs))
    assert from_keras(plain, rank=1).compression().full == 4 * 36
    model.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    state = sum(math.prod(v.shape) for v in model.optimizer.variables if of_factors(v))
    assert model.compression().training == 7 * 36 + LOW + 4 + 7 * 36 + state
