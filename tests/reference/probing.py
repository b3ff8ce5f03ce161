"""A layer of every kind, and the parts that a probe finds in it."""

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
from keras_lowrank.linalg import complement
from keras_lowrank.substitution import substitute
from keras_lowrank.tangent import TangentProbe

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
    """TensorFlow has no such convolution on a CPU."""

    def call(self, x):
        return tf.transpose(super().call(tf.transpose(x, (0, 2, 3, 1))), (0, 3, 1, 2))


def make(case, rank=2, dtype="float64", seed=0, **kwargs):
    """A built layer with a full core, a full-rank Keras layer like it, and inputs of its shape."""
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
    layer.S.assign(rng.standard_normal((rank, rank)))
    return layer, full, x


def loss_of(outputs):
    """Not linear, so that its gradient depends on the outputs."""
    outputs = tf.cast(outputs, tf.float64)
    weights = tf.reshape(tf.range(tf.size(outputs, tf.int64)), tf.shape(outputs))
    return tf.reduce_sum(tf.sin(outputs) * (1.0 + 0.1 * tf.cast(weights % 7, tf.float64)))


def full_gradient(full, layer, x):
    """`(G, dx)` of the full-rank layer at the kernel of `layer`, G as an n x m matrix."""
    full.kernel.assign(layer.kernel)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = loss_of(full(x))
    G, dx = tape.gradient(loss, [full.kernel.value, x])
    return layer.matricization.matrix(G).numpy(), dx.numpy()


def probe_gradients(layer, x, sides=None, traced=False, forward=None):
    """Gradients of K, L and x inside a substitution, and the coupling to the two complements."""

    def run(x):
        probe = TangentProbe(layer.factors.read(), keep_calls=sides is not None)
        with substitute({layer.factors: probe}), tf.GradientTape() as tape:
            tape.watch([x, probe.K, probe.L])
            loss = loss_of((forward or layer)(x))
        gradients = tape.gradient(loss, [probe.K, probe.L, x])
        if sides is None:
            return gradients
        # A complement made here: in a traced function it is one of its own tensors, as in a step.
        left, right = (complement(block, basis) for block, basis in sides)
        q, z = (side.formed(basis) for side, (_, basis) in zip((left, right), sides))
        return [*gradients, probe.coupling(left, right), q, z]

    return [t.numpy() for t in (tf.function(run) if traced else run)(x)]


def random_sides(layer, columns, seed=1):
    """`(block, basis)` for each side of the layer's matrix, for `complement`."""
    rng = np.random.default_rng(seed)
    u, _, v = layer.factors.read()
    dtype = u.dtype
    return [
        (tf.constant(rng.standard_normal((basis.shape[0], columns)), dtype), basis)
        for basis in (u, v)
    ]
