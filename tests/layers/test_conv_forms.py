"""Convolutions in each of their forms: the convolution with the kernel."""

import keras
import numpy as np
import pytest
from reference.conversion import check_same
from reference.convolutions import draw, with_kernel_of
from reference.exported import path_for, predict_file

from keras_lowrank import (
    LowRankConv1D,
    LowRankConv2D,
    LowRankConv3D,
    Parallel,
    from_keras,
    to_keras,
)


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


OTHERS = {LowRankConv1D: (11, 3), LowRankConv3D: (5, 6, 7, 3)}
others = pytest.mark.parametrize("layer_class, shape", OTHERS.items())


@others
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"strides": 2, "padding": "same"},
        {"dilation_rate": 2, "padding": "same"},
        {"dilation_rate": 2, "padding": "causal"},
        {"strides": 2, "padding": "causal"},
    ],
)
def test_tucker_kernels_over_one_and_three_axes(layer_class, shape, arguments):
    if layer_class is LowRankConv3D and arguments.get("padding") == "causal":
        arguments = {**arguments, "padding": "valid"}  # Keras has causal padding over one axis only
    options = {"factorization": "tucker", "bias_initializer": "normal"}
    layer, inputs = layer_class(5, 3, rank=2, **options, **arguments), draw(2, *shape)
    outputs = layer(inputs)
    places = 3 ** (len(shape) - 1)
    assert [weight.shape for weight in layer.weights] == [(3, 2), (places, 2, 2), (5, 2), (5,)]
    twin = layer_class.keras_layer(5, 3, **arguments)
    twin.build(inputs.shape)
    twin.set_weights([layer.kernel, layer.bias])
    assert layer.compute_output_shape(inputs.shape) == outputs.shape
    np.testing.assert_allclose(outputs, twin(inputs), atol=1e-5)
    config = layer.get_config()
    assert config["factorization"] == "tucker"
    assert layer_class.from_config(config).get_config() == config


@pytest.fixture(scope="module")
def model():
    """Trained, converted to Tucker-2 kernels where there are such."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 6))
    x = keras.layers.Conv1D(16, 3, padding="causal", activation="tanh", name="line")(inputs)
    x = keras.layers.Reshape((3, 2, 2, 16))(x)
    x = keras.layers.Conv3D(10, 2, padding="same", activation="relu", name="volume")(x)
    outputs = keras.layers.Dense(3, name="head")(keras.layers.GlobalAveragePooling3D()(x))
    model = from_keras(keras.Model(inputs, outputs), rank=6, factorization="tucker")
    optimizer, integrator = keras.optimizers.SGD(0.1), Parallel(adapt_every=2)
    model.compile(optimizer, "mse", integrator=integrator, truncation=0.5)
    losses = model.fit(draw(8, 12, 6), draw(8, 3), epochs=4, batch_size=4, verbose=0)
    assert losses.history["loss"][-1] < losses.history["loss"][0]
    return model


def test_they_train_and_come_back_from_files(model, tmp_path):
    assert {*model.ranks} == {f"{a}/{b}" for a in ("line", "volume") for b in ("input", "output")}
    assert set(model.ranks.values()) != {6}
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = draw(4, 12, 6)
    assert again.ranks == model.ranks
    np.testing.assert_array_equal(again(x), model(x))
    check_same(model, to_keras(model), x)


@pytest.mark.parametrize("format", ["tf_saved_model", "litert"])
def test_their_exports_agree_with_the_model(model, tmp_path, format):
    path, x = path_for(tmp_path, format), draw(3, 12, 6)
    model.export(path, format=format, verbose=0)
    (outputs,) = predict_file(path, format, [x])
    np.testing.assert_allclose(outputs, model(x), atol=1e-4)


@others
def test_they_have_no_spatial_form(layer_class, shape):
    with pytest.raises(ValueError, match=r"must be 'matrix' or 'tucker'\. Received: .*'spatial'"):
        layer_class(5, 3, factorization="spatial")
