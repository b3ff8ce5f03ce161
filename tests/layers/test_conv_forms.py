"""LowRankConv2D in each of its forms: the convolution with its kernel."""

import keras
import numpy as np
import pytest
from reference.convolutions import draw, with_kernel_of

from keras_lowrank import LowRankConv2D


@pytest.mark.parametrize("form", ["spatial", "tucker"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"strides": 2},
        {"strides": (1, 3), "padding": "same"},
        {"strides": 2, "padding": "same"},
        {"dilation_rate": 2},
        {"dilation_rate": (2, 1), "padding": "same"},
        {"dilation_rate": 3, "padding": "same"},
    ],
)
@pytest.mark.parametrize("kernel_size", [1, (2, 3), (3, 4)])
@pytest.mark.parametrize("width", [10, 11])
def test_forward_equals_conv2d_with_the_same_kernel(form, arguments, kernel_size, width):
    options = {"factorization": form, "bias_initializer": "normal"}
    layer = LowRankConv2D(5, kernel_size, rank=2, **options, **arguments)
    inputs = draw(2, 9, width, 3)
    outputs = layer(inputs)
    expected = with_kernel_of(layer, 3, **arguments)(inputs)
    assert layer.compute_output_shape(inputs.shape) == outputs.shape == expected.shape
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.parametrize("form", ["spatial", "tucker"])
def test_channels_first_and_mixed_precision(form):
    first = LowRankConv2D(
        5, 3, rank=2, factorization=form, data_format="channels_first", padding="same"
    )
    last = LowRankConv2D(5, 3, rank=2, factorization=form, padding="same", dtype="mixed_bfloat16")
    inputs = draw(2, 3, 9, 8)
    first.build(inputs.shape)
    last.build((2, 9, 8, 3))
    last.set_weights(first.get_weights())
    expected = last(inputs.transpose(0, 2, 3, 1))
    assert expected.dtype == "bfloat16"
    expected = np.transpose(keras.ops.cast(expected, "float32"), (0, 3, 1, 2))
    np.testing.assert_allclose(first(inputs), expected, atol=0.05)
