"""LowRankConv2D against keras.layers.Conv2D."""

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankConv2D, LowRankModel, Tolerance


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def same_conv(layer, **kwargs):
    """A keras.layers.Conv2D with the kernel and the bias of a low-rank layer."""
    conv = keras.layers.Conv2D(
        layer.filters, layer.kernel_size, activation=layer.activation, **kwargs
    )
    conv.build((None, None, None, layer.kernel_shape[2]))
    conv.set_weights([layer.kernel, layer.bias])
    return conv


def test_conv2d_basics():
    layer = LowRankConv2D(6, 3, rank=4, activation="relu")
    outputs = layer(draw(2, 8, 7, 2))
    assert outputs.shape == (2, 6, 5, 6)
    assert [tuple(v.shape) for v in layer.weights] == [(18, 4), (4, 4), (6, 4), (6,)]
    assert [v.name for v in layer.weights] == ["U", "S", "V", "bias"]
    assert layer.kernel.shape == layer.kernel_shape == (3, 3, 2, 6)
    assert layer.count_params() == 18 * 4 + 4 * 4 + 6 * 4 + 6
    inputs = keras.Input((8, 7, 2))
    model = LowRankModel(inputs, layer(inputs))
    model.compile("sgd", "mse", truncation=0.0)
    losses = model.fit(
        draw(8, 8, 7, 2), draw(8, 6, 5, 6), epochs=3, batch_size=4, verbose=0
    ).history["loss"]
    assert losses[2] < losses[1] < losses[0]


def test_config_round_trip_keeps_every_argument():
    layer = LowRankConv2D(
        6,
        (3, 2),
        strides=2,
        padding="same",
        data_format="channels_first",
        dilation_rate=(1, 1),
        groups=1,
        activation="relu",
        use_bias=False,
        rank=4,
        min_rank=2,
        max_rank=5,
        truncation=Tolerance(0.2),
        kernel_initializer="he_uniform",
        kernel_regularizer="l2",
        dtype="mixed_float16",
        name="mine",
    )
    config = layer.get_config()
    again = LowRankConv2D.from_config(config)
    assert again.get_config() == config
    assert (again.kernel_size, again.strides, again.padding) == ((3, 2), (2, 2), "same")
    assert (again.data_format, again.use_bias, again.rank) == ("channels_first", False, 4)
    assert again.truncation.tolerance == 0.2 and again.dtype_policy.name == "mixed_float16"
    serialized = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(serialized).get_config() == config


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"strides": 2},
        {"strides": (2, 1), "padding": "same"},
        {"padding": "same"},
        {"dilation_rate": 2},
        {"dilation_rate": (1, 3), "padding": "same"},
    ],
)
@pytest.mark.parametrize("kernel_size", [1, (3, 2)])
def test_forward_equals_conv2d_with_the_same_kernel(arguments, kernel_size):
    layer = LowRankConv2D(
        5, kernel_size, rank=2, activation="tanh", bias_initializer="ones", **arguments
    )
    inputs = draw(2, 9, 8, 3)
    outputs = layer(inputs)
    expected = same_conv(layer, **arguments)(inputs)
    assert layer.compute_output_shape(inputs.shape) == outputs.shape == expected.shape
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_full_rank_equals_conv2d():
    kernel = draw(3, 3, 2, 6)

    def given(shape, dtype=None):
        return keras.ops.cast(kernel, dtype)

    layer = LowRankConv2D(6, 3, rank=6, kernel_initializer=given)
    conv = keras.layers.Conv2D(6, 3, kernel_initializer=given)
    inputs = draw(2, 9, 8, 2)
    np.testing.assert_allclose(layer(inputs), conv(inputs), atol=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"strides": (2, 1)}, {"padding": "same"}])
def test_channels_first_equals_channels_last_transposed(arguments):
    first = LowRankConv2D(5, 3, rank=2, data_format="channels_first", **arguments)
    last = LowRankConv2D(5, 3, rank=2, data_format="channels_last", **arguments)
    inputs = draw(2, 3, 9, 8)
    first.build(inputs.shape)
    last.build((2, 9, 8, 3))
    last.set_weights(first.get_weights())
    outputs = first(inputs)
    assert first.compute_output_shape(inputs.shape) == outputs.shape
    expected = last(inputs.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(outputs, np.transpose(expected, (0, 3, 1, 2)), atol=1e-5)


def test_channels_first_trains():
    inputs = keras.Input((2, 6, 6))
    model = LowRankModel(inputs, LowRankConv2D(4, 3, data_format="channels_first")(inputs))
    model.compile("sgd", "mse")
    losses = model.fit(draw(8, 2, 6, 6), draw(8, 4, 4, 4), epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_factors_stay_float32_under_mixed_precision(policy):
    layer = LowRankConv2D(6, 3, rank=4, dtype=policy)
    inputs = draw(2, 8, 7, 2)
    outputs = layer(inputs)
    assert outputs.dtype == layer.compute_dtype
    assert {v.dtype for v in layer.factors.variables} == {"float32"}
    np.testing.assert_allclose(
        keras.ops.cast(outputs, "float32"), same_conv(layer)(inputs), atol=0.05
    )


def test_open_height_and_width():
    inputs = keras.Input((None, None, 2))
    model = keras.Model(inputs, LowRankConv2D(6, 3, rank=2, padding="same")(inputs))
    assert model.output_shape == (None, None, None, 6)
    assert model.predict(draw(1, 5, 7, 2), verbose=0).shape == (1, 5, 7, 6)


def test_l2_regularizer_is_the_norm_of_the_kernel():
    layer = LowRankConv2D(6, 3, rank=4, kernel_regularizer=keras.regularizers.L2(0.1))
    layer.build((None, 8, 8, 2))
    np.testing.assert_allclose(layer.losses, [0.1 * np.sum(np.square(layer.kernel))], rtol=1e-5)


def test_energy_counts_the_receptive_field():
    # Conv2D's fan-in is kh kw c: a kernel read as c x f would start kh kw times too strong.
    layer = LowRankConv2D(32, 3, rank=8, kernel_initializer="he_normal")
    layer.build((None, 8, 8, 16))
    np.testing.assert_allclose(np.sum(np.square(layer.kernel)), 2.0 * 32, rtol=1e-4)


def test_definite_kernel_starts_as_its_best_approximation():
    kernel = draw(3, 2, 2, 6)
    layer = LowRankConv2D(
        6, (3, 2), rank=3, kernel_initializer=lambda shape, dtype=None: kernel.reshape(shape)
    )
    layer.build((None, 8, 8, 2))
    error = np.linalg.norm(kernel - layer.kernel)
    values = np.linalg.svd(kernel.reshape(12, 6), compute_uv=False)
    np.testing.assert_allclose(error, np.linalg.norm(values[3:]), atol=1e-5)


def test_rank_none_leaves_two_fifths_of_the_weights():
    layer = LowRankConv2D(50, 5)
    layer.build((None, 12, 12, 20))
    n, m, rank = 500, 50, layer.rank
    assert rank * (n + m) <= 0.4 * n * m < (rank + 1) * (n + m)


# Errors.


@pytest.mark.parametrize("groups", [0, 2])
def test_groups_raise(groups):
    with pytest.raises(ValueError, match=f"`groups` must be 1.*groups={groups}"):
        LowRankConv2D(4, 3, groups=groups)


@pytest.mark.parametrize("name", ["kernel_constraint", "lora_rank", "lora_alpha"])
def test_argument_that_would_be_ignored_raises(name):
    with pytest.raises(ValueError, match=f"`{name}` must be None in a low-rank layer"):
        LowRankConv2D(4, 3, **{name: 2})


def test_l1_regularizer_raises():
    with pytest.raises(ValueError, match="`kernel_regularizer` must be L2"):
        LowRankConv2D(4, 3, kernel_regularizer="l1")


@pytest.mark.parametrize("rank", [0, -3, 1.5])
def test_rank_that_is_no_positive_integer_raises(rank):
    with pytest.raises(ValueError, match=f"`rank` must be a positive integer.*rank={rank}"):
        LowRankConv2D(4, 3, rank=rank)


def test_rank_above_the_size_of_the_kernel_raises_when_built():
    with pytest.raises(ValueError, match=r"at most min\(n, m\) = 4 for its 18 x 4 kernel"):
        LowRankConv2D(4, 3, rank=5).build((None, 8, 8, 2))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"filters": 0}, "`filters`|filters"),
        ({"kernel_size": 0}, "`kernel_size`"),
        ({"strides": 0}, "`strides`"),
        ({"padding": "valide"}, "`padding`"),
        ({"padding": "causal"}, "padding"),
        ({"data_format": "last"}, "`data_format`"),
        ({"strides": 2, "dilation_rate": 2}, "strides > 1"),
    ],
)
def test_argument_that_conv2d_refuses_is_refused(arguments, words):
    arguments = {"filters": 4, "kernel_size": 3, **arguments}
    with pytest.raises(ValueError):
        keras.layers.Conv2D(**arguments)
    with pytest.raises(ValueError, match=words):
        LowRankConv2D(**arguments)


def test_input_that_the_kernel_does_not_fit_into_is_refused():
    with pytest.raises(ValueError, match=r"negative|[Oo]utput shape"):
        LowRankConv2D(4, 5).build((None, 3, 3, 1))


def test_unknown_number_of_channels_is_refused_with_words():
    with pytest.raises(ValueError, match="None"):
        LowRankConv2D(4, 3).build((None, 8, 8, None))


@pytest.mark.parametrize("shape", [(2, 9, 9), (2, 2, 9, 9, 3)])
def test_input_of_another_rank_is_refused(shape):
    with pytest.raises(ValueError, match=r"ndim=4|same length as input"):
        LowRankConv2D(4, 3)(draw(*shape))


def test_input_with_other_channels_is_refused():
    layer = LowRankConv2D(4, 3)
    layer.build((None, 9, 9, 3))
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 3"):
        layer(draw(2, 9, 9, 2))
