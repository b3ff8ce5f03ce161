"""Attention layers of Keras, and low-rank ones with the same weights."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_lowrank import LowRankGroupQueryAttention, LowRankMultiHeadAttention, convert_layer

MULTI_HEAD = {"num_heads": 2, "key_dim": 4}
GROUPED = {"head_dim": 4, "num_query_heads": 4, "num_key_value_heads": 2}
NAMES = ["query", "key", "value", "attention_output"]
GATED = pytest.mark.skipif(
    "use_gate" not in layers.MultiHeadAttention(1, 1).get_config(), reason="this Keras has no gate"
)
WINDOWED = pytest.mark.skipif(
    "sliding_window" not in layers.MultiHeadAttention(1, 1).get_config(),
    reason="this Keras has no sliding window",
)
every = pytest.mark.parametrize(
    "low, plain, arguments",
    [
        (LowRankMultiHeadAttention, layers.MultiHeadAttention, MULTI_HEAD),
        (LowRankGroupQueryAttention, layers.GroupQueryAttention, GROUPED),
    ],
    ids=["multi-head", "grouped"],
)
rng = np.random.default_rng(0)


def draw(*shape):
    return rng.standard_normal(shape).astype("float32")


def randomized(layer):
    for variable in layer.weights:
        if "float" in variable.dtype:
            variable.assign(0.5 * draw(*variable.shape))
    return layer


def with_twin(plain, *inputs):
    """Returns a Keras layer with random weights, and the low-rank layer with the same kernels."""
    plain.build(*(one.shape for one in inputs))
    return randomized(plain), convert_layer(plain, tolerance=0.0)


def check_calls(plain, twin, *inputs, **call):
    expected, found = (keras.tree.flatten(one(*inputs, **call)) for one in (plain, twin))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(a).max())


def model_of(attend, *extra):
    inputs = keras.Input((5, 8))
    x = inputs + attend(inputs, inputs, use_causal_mask=True)
    return inputs, layers.Dense(3, name="head")(x)
