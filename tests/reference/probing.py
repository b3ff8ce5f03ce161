"""Layers of every kind, and their tangent gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import (
    LowRankConv1D,
    LowRankConv2D,
    LowRankConv2DTranspose,
    LowRankConv3D,
    LowRankDense,
    LowRankEinsumDense,
)
from keras_lowrank.integrators.chart import Chart

EINSUM = {"equation": "ab,cbd->acd", "output_shape": (2, 3), "bias_axes": "cd"}
EINSUM_4D = {"equation": "abcd,edc->aeb", "output_shape": (5, None), "bias_axes": "e"}
CONV = {"kernel_size": (2, 3), "filters": 5}
CONV_1D = {"kernel_size": 3, "filters": 5}
# (layer, arguments, input shape)
CASES = {
    "dense 2-D": (LowRankDense, {"units": 5}, (7, 6)),
    "dense 3-D": (LowRankDense, {"units": 5}, (3, 4, 6)),
    "dense 4-D": (LowRankDense, {"units": 5}, (2, 3, 2, 6)),
    "conv": (LowRankConv2D, CONV, (3, 6, 7, 2)),
    "conv strides": (LowRankConv2D, {**CONV, "strides": 2, "padding": "same"}, (3, 6, 7, 2)),
    "conv dilation": (
        LowRankConv2D,
        {**CONV, "dilation_rate": (1, 2), "padding": "same"},
        (3, 6, 7, 2),
    ),
    "conv channels first": (
        LowRankConv2D,
        {**CONV, "data_format": "channels_first"},
        (3, 2, 6, 7),
    ),
    "conv spatial": (
        LowRankConv2D,
        {
            "filters": 5,
            "kernel_size": 3,
            "strides": (1, 2),
            "padding": "same",
            "factorization": "spatial",
        },
        (3, 6, 7, 2),
    ),
    "conv 1-D causal": (LowRankConv1D, {**CONV_1D, "padding": "causal"}, (3, 6, 2)),
    "conv 1-D dilation": (
        LowRankConv1D,
        {**CONV_1D, "padding": "same", "dilation_rate": 2},
        (3, 6, 2),
    ),
    "conv 3-D": (
        LowRankConv3D,
        {"kernel_size": 2, "filters": 5, "strides": (2, 1, 1), "padding": "same"},
        (2, 3, 4, 3, 2),
    ),
    "conv transpose": (
        LowRankConv2DTranspose,
        {**CONV, "strides": 2, "padding": "same"},
        (2, 3, 4, 2),
    ),
    "einsum 2-D": (LowRankEinsumDense, EINSUM, (7, 6)),
    "einsum 4-D": (LowRankEinsumDense, EINSUM_4D, (3, 4, 2, 3)),
}
cases = pytest.mark.parametrize("case", CASES)
eager_and_traced = pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])


class ChannelsFirst(keras.layers.Conv2D):
    """A convolution with channels first, which TensorFlow does not have on a CPU."""

    def call(self, x):
        return tf.transpose(super().call(tf.transpose(x, (0, 2, 3, 1))), (0, 3, 1, 2))


def make(case, rank=2, dtype="float64", seed=0, **kwargs):
    """Returns a built low-rank layer, the same layer of Keras, and inputs of its shape."""
    low_rank, arguments, shape = CASES[case]
    rng = np.random.default_rng(seed)
    x = tf.constant(rng.standard_normal(shape), "float64" if dtype == "float64" else "float32")
    layer = low_rank(**arguments, rank=rank, dtype=dtype, **kwargs)
    plain = getattr(keras.layers, low_rank.__name__.removeprefix("LowRank"))
    arguments = {name: value for name, value in arguments.items() if name != "factorization"}
    if "data_format" in arguments:
        plain, arguments = ChannelsFirst, {**arguments, "data_format": "channels_last"}
        full = plain(**arguments, dtype=dtype, **kwargs)
        full.build([shape[i] for i in (0, 2, 3, 1)])
    else:
        full = plain(**arguments, dtype=dtype, **kwargs)
        full.build(shape)
    layer.build(shape)
    full.input_spec = None
    layer.S.assign(np.diag(np.sort(rng.uniform(0.5, 2.0, rank))[::-1]))
    return layer, full, x


def loss_of(outputs):
    """A nonlinear loss, whose gradient depends on the outputs."""
    outputs = tf.cast(outputs, tf.float64)
    weights = tf.reshape(tf.range(tf.size(outputs, tf.int64)), tf.shape(outputs))
    return tf.reduce_sum(tf.sin(outputs) * (1.0 + 0.1 * tf.cast(weights % 7, tf.float64)))


def full_gradient(full, layer, x):
    """Returns `(G, dx)` of Keras's layer with the kernel of `layer`, G of shape `(n, m)`."""
    full.kernel.assign(layer.kernel)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = loss_of(full(x))
    G, dx = tape.gradient(loss, [full.kernel.value, x])
    return layer.matricization.matrix(G).numpy(), dx.numpy()


def tangent_gradient(layer, x, traced=False, forward=None):
    """Returns `(K, S, L, dx)`, the tangent gradient at the origin of a chart; S is diagonal."""

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = loss_of((forward or layer)(x))
        *gradients, dx = tape.gradient(loss, [*layer.factors.variables, x])
        factors = layer.factors.read()
        return *Chart(factors, tf.linalg.diag_part(factors.S)).tangent(gradients), dx

    return [t.numpy() for t in (tf.function(run) if traced else run)(x)]


def check_factor_gradients(factors, gradients, G):
    """Compares the gradients of U, S, V with `(G V S^T, U^T G V, G^T U S)`."""
    U, S, V = (factor.numpy() for factor in factors.read())
    for found, right in zip(gradients, (G @ V @ S.T, U.T @ G @ V, G.T @ U @ S), strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(found), right, atol=1e-10)
