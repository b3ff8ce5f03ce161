"""Convolutions over one and three axes, and the transposed one, against those of Keras."""

import keras
import numpy as np
import pytest
from reference.cases import partly_slow
from reference.conversion import check_same, full
from reference.exported import operations, path_for, predict_file
from reference.full_rank import compare_step_by_step

from keras_lowrank import (
    LowRankConv1D,
    LowRankConv2DTranspose,
    LowRankConv3D,
    LowRankModel,
    Parallel,
    RankAdaptive,
    from_keras,
    to_keras,
)

# Each with the shape of its inputs, without the batch, and the kernel of 6 filters of size 3 there.
LAYERS = {
    LowRankConv1D: ((9, 2), (3, 2, 6)),
    LowRankConv3D: ((5, 6, 5, 2), (3, 3, 3, 2, 6)),
    LowRankConv2DTranspose: ((4, 5, 2), (3, 3, 6, 2)),
}
every = pytest.mark.parametrize("layer_class", LAYERS)


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def inputs_for(layer_class, batch=2):
    return draw(batch, *LAYERS[layer_class][0])


def plain(layer_class, *args, **kwargs):
    """The Keras layer that a layer replaces."""
    return getattr(keras.layers, layer_class.__name__.removeprefix("LowRank"))(*args, **kwargs)


def with_kernel_of(layer, inputs, **arguments):
    """The Keras layer with the kernel and the bias of a low-rank layer."""
    twin = plain(type(layer), layer.filters, layer.kernel_size, activation="tanh", **arguments)
    twin.build(inputs.shape)
    twin.set_weights([layer.kernel, layer.bias])
    return twin


@every
def test_conv_nd_basics(layer_class):
    layer = layer_class(6, 3, rank=4, activation="relu")
    inputs = inputs_for(layer_class)
    outputs = layer(inputs)
    kernel_shape = LAYERS[layer_class][1]
    n = np.prod(kernel_shape) // 6
    assert outputs.shape == plain(layer_class, 6, 3)(inputs).shape
    assert [tuple(v.shape) for v in layer.weights] == [(n, 4), (4, 4), (6, 4), (6,)]
    assert [v.name for v in layer.weights] == ["U", "S", "V", "bias"]
    assert layer.kernel.shape == layer.kernel_shape == kernel_shape
    assert layer.count_params() == n * 4 + 4 * 4 + 6 * 4 + 6
    half = layer_class(6, 3, rank=4, activation="relu", dtype="mixed_bfloat16")
    half.build(inputs.shape)
    half.set_weights(layer.get_weights())
    assert half(inputs).dtype == "bfloat16" and half.U.dtype == "float32"
    np.testing.assert_allclose(keras.ops.cast(half(inputs), "float32"), outputs, atol=0.1)


@every
def test_config_round_trip_keeps_every_argument(layer_class):
    own = {"output_padding": 1} if layer_class is LowRankConv2DTranspose else {"groups": 1}
    given = {
        "strides": 2,
        "padding": "causal" if layer_class is LowRankConv1D else "same",
        "data_format": "channels_first",
        "dilation_rate": 1,
        "use_bias": False,
        "min_rank": 2,
        "max_rank": 5,
        "name": "mine",
        **own,
    }
    layer = layer_class(6, 3, rank=4, activation="relu", kernel_regularizer="l2", **given)
    config = layer.get_config()
    axes = len(layer.kernel_size)
    twos = dict.fromkeys(("strides", "kernel_size", "dilation_rate", "output_padding"), axes)
    for name, value in given.items():
        assert config[name] == ((value,) * twos[name] if name in twos else value)
    again = layer_class.from_config(config)
    assert again.get_config() == config
    serialized = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(serialized).get_config() == config


CONV = [
    {},
    {"strides": 2, "padding": "same"},
    {"strides": 3},
    {"padding": "same"},
    {"padding": "same", "dilation_rate": 2},
]
CAUSAL = [{"padding": "causal", **options} for options in ({}, {"strides": 2})]
CAUSAL += [{"padding": "causal", "dilation_rate": 3}]
TRANSPOSE = [
    *CONV,
    {"strides": 3, "output_padding": 2},
    {"strides": (3, 2), "padding": "same", "output_padding": (2, 1)},
]


@pytest.mark.parametrize(
    "layer_class, arguments",
    [
        *((LowRankConv1D, arguments) for arguments in CONV + CAUSAL),
        *((LowRankConv3D, arguments) for arguments in CONV),
        *((LowRankConv2DTranspose, arguments) for arguments in TRANSPOSE),
    ],
)
@pytest.mark.parametrize("size", [2, 3])
def test_forward_equals_keras_with_the_same_kernel(layer_class, arguments, size):
    layer = layer_class(5, size, rank=2, activation="tanh", bias_initializer="normal", **arguments)
    inputs = inputs_for(layer_class)
    outputs = layer(inputs)
    expected = with_kernel_of(layer, inputs, **arguments)(inputs)
    assert layer.compute_output_shape(inputs.shape) == outputs.shape == expected.shape
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


@every
def test_channels_first_equals_channels_last_transposed(layer_class):
    options = {"strides": 2, "padding": "same", "rank": 2, "bias_initializer": "normal"}
    first = layer_class(5, 3, data_format="channels_first", **options)
    last = layer_class(5, 3, data_format="channels_last", **options)
    inputs = inputs_for(layer_class)
    there = (0, inputs.ndim - 1, *range(1, inputs.ndim - 1))
    moved = inputs.transpose(there)
    first.build(moved.shape)
    last.build(inputs.shape)
    last.set_weights(first.get_weights())
    outputs = first(moved)
    assert first.compute_output_shape(moved.shape) == outputs.shape
    np.testing.assert_allclose(outputs, np.transpose(last(inputs), there), atol=1e-5)


@every
def test_a_start_has_the_energy_that_keras_would_give_it(layer_class):
    """Of a random kernel; its fans are counted as Keras counts them, in the kernel's own order."""
    shape = (*LAYERS[layer_class][0][:-1], 64)
    for initializer in ("glorot_uniform", "he_normal", "orthogonal"):
        layer = layer_class(16, 3, rank=4, kernel_initializer=initializer)
        layer.build((None, *shape))
        twin = plain(layer_class, 16, 3, kernel_initializer=initializer)
        twin.build((None, *shape))
        energies = [np.sum(np.square(one.kernel)) for one in (layer, twin)]
        np.testing.assert_allclose(*energies, rtol=0.1)


@every
def test_a_definite_kernel_starts_as_it_is_and_its_regularizer_is_that_of_keras(layer_class):
    kernel = draw(*LAYERS[layer_class][1])
    options = {
        "kernel_initializer": lambda shape, dtype=None: kernel.reshape(shape),
        "kernel_regularizer": keras.regularizers.L2(0.1),
    }
    layer, twin = layer_class(6, 3, rank=6, **options), plain(layer_class, 6, 3, **options)
    inputs = inputs_for(layer_class)
    np.testing.assert_allclose(layer(inputs), twin(inputs), atol=1e-4)
    np.testing.assert_allclose(layer.kernel, kernel, atol=1e-5)
    np.testing.assert_allclose(layer.losses, twin.losses, rtol=1e-5)


# In models.


def network(**options):
    """All three in a row, of Keras's layers; what one puts out, the next reads."""
    layers = keras.layers
    inputs = keras.Input((6, 3))
    x = layers.Conv1D(8, 3, padding="causal", activation="tanh", name="one", **options)(inputs)
    x = layers.Reshape((3, 2, 8))(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="two", **options)(x)
    x = layers.Reshape((3, 2, 4, 8))(layers.BatchNormalization()(x))
    x = layers.Conv3D(9, 2, padding="same", activation="relu", name="three", **options)(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling3D()(x)))


def low_rank_network(rank=3):
    return from_keras(
        network(bias_initializer="normal"), rank=rank, only_smaller=False, exclude="head"
    )


@pytest.mark.parametrize("integrator", partly_slow([RankAdaptive(1)], [Parallel(1)]))
def test_at_full_rank_every_step_is_that_of_keras(integrator):
    model = network(bias_initializer="normal")
    low = from_keras(model, tolerance=0.0, only_smaller=False, exclude="head")
    assert low.ranks == {"one": 8, "two": 8, "three": 9}
    optimizer = keras.optimizers.SGD(0.2)
    low.compile(optimizer, "mse", integrator=integrator, truncation=0.0)
    model.compile(keras.optimizers.SGD(0.2), "mse")
    compare_step_by_step(low, model)


def test_ranks_change_in_training_and_come_back_from_files(tmp_path):
    model = low_rank_network(rank=6)
    optimizer, integrator = keras.optimizers.SGD(0.05), Parallel(adapt_every=4)
    model.compile(optimizer, "mse", integrator=integrator, truncation=0.4)
    x, y = draw(8, 6, 3), draw(8, 3)
    losses = model.fit(x, y, epochs=4, batch_size=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0] and set(model.ranks.values()) != {6}
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.ranks == model.ranks
    np.testing.assert_array_equal(again(x), model(x))
    other = low_rank_network(rank=2)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert other.ranks == model.ranks
    np.testing.assert_array_equal(other(x), model(x))
    # Counted by their matrices, whatever the order of the axes in Keras.
    assert [one.factors.n for one in model.layers if hasattr(one, "factors")] == [9, 72, 64]
    held = sum(r * s for r, s in zip(model.ranks.values(), (9 + 8, 72 + 8, 64 + 9)))
    assert model.compression().factored == held + 9 * 3
    assert model.compression().full == 9 * 8 + 72 * 8 + 64 * 9 + 9 * 3
    lines = []
    model.summary(print_fn=lambda text, **_: lines.append(text))
    assert "72 x 8" in "\n".join(lines)


def test_there_and_back_again():
    model = network(bias_initializer="normal")
    low = full(model)
    x = draw(4, 6, 3)
    check_same(model, low, x)
    for style in ("factored", "merged"):
        back = to_keras(low, style=style)
        check_same(model, back, x)
    for before, after in zip(model.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-5)
    first, second = to_keras(low, style="factored").get_layer("two").layers
    assert (type(first), type(second)) == (keras.layers.Conv2DTranspose,) * 2
    assert (first.kernel.shape, second.kernel.shape) == ((3, 3, 8, 8), (1, 1, 8, 8))


def test_conversion_for_data_minimizes_the_error_of_outputs():
    model, x = network(bias_initializer="normal"), draw(50, 6, 3)
    ranks = {"two": 2}
    errors = []
    for data in (None, x):
        low = from_keras(model, rank=ranks, data=data)
        inner = [keras.Model(one.input, one.get_layer("two").output) for one in (model, low)]
        errors.append(np.linalg.norm(inner[0](x) - inner[1](x)))
    assert errors[1] < 0.999 * errors[0]


@pytest.mark.parametrize("format", ["tf_saved_model", "litert"])
def test_exports_agree_with_the_model(tmp_path, format):
    model = low_rank_network()
    path, x = path_for(tmp_path, format), draw(3, 6, 3)
    model.export(path, format=format, verbose=0)
    (outputs,) = predict_file(path, format, [x])
    np.testing.assert_allclose(outputs, model(x), atol=1e-4)
    if format == "litert":
        names = operations(path)
        assert {"TRANSPOSE_CONV", "CONV_3D"} <= names
        assert not [name for name in names if "FLEX" in name.upper() or "CUSTOM" in name.upper()]


def test_litert_says_what_it_has_no_operation_for(tmp_path):
    inputs = keras.Input((5, 5, 5, 2))
    model = LowRankModel(inputs, LowRankConv3D(4, 2, rank=2, dilation_rate=2)(inputs))
    with pytest.raises(ValueError, match=r"must have a builtin operation.*SpaceToBatchND"):
        model.export(tmp_path / "model.tflite", format="litert", verbose=0)


def test_open_extents():
    inputs = keras.Input((None, 2))
    model = LowRankModel(inputs, LowRankConv1D(6, 3, rank=2, padding="causal")(inputs))
    assert model.output_shape == (None, None, 6)
    assert model.predict(draw(1, 7, 2), verbose=0).shape == (1, 7, 6)
    inputs = keras.Input((None, 5, 2))
    layer = LowRankConv2DTranspose(6, 3, strides=2, rank=2)
    model = LowRankModel(inputs, layer(inputs))
    assert model.output_shape == (None, None, 11, 6)
    model.compile("sgd", "mse", truncation=0.5)
    x, y = draw(4, 3, 5, 2), draw(4, 7, 11, 6)
    losses = model.fit(x, y, epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    assert model.predict(draw(1, 4, 5, 2), verbose=0).shape == (1, 9, 11, 6)


# Errors.


@pytest.mark.parametrize("layer_class", [LowRankConv1D, LowRankConv3D])
def test_groups_raise(layer_class):
    with pytest.raises(ValueError, match=r"`groups` must be 1.*groups=2"):
        layer_class(4, 3, groups=2)


@every
def test_rank_above_the_size_of_the_kernel_raises_when_built(layer_class):
    with pytest.raises(ValueError, match=r"at most min\(n, m\) = 4 for its \d+ x 4 kernel"):
        layer_class(4, 3, rank=5).build((None, *LAYERS[layer_class][0]))


@every
@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"filters": 0}, "filters"),
        ({"kernel_size": 0}, "`kernel_size`"),
        ({"kernel_size": (3, 3, 3, 3)}, "`kernel_size`"),
        ({"strides": 0}, "`strides`"),
        ({"padding": "valide"}, "`padding`"),
        ({"data_format": "last"}, "`data_format`"),
        ({"strides": 2, "dilation_rate": 2}, "strides > 1"),
    ],
)
def test_argument_that_keras_refuses_is_refused(layer_class, arguments, words):
    arguments = {"filters": 4, "kernel_size": 3, **arguments}
    with pytest.raises(ValueError):
        plain(layer_class, **arguments)
    with pytest.raises(ValueError, match=words):
        layer_class(**arguments)


def test_output_padding_that_keras_refuses_is_refused():
    arguments = {"filters": 4, "kernel_size": 3, "strides": 2, "output_padding": (1, 1, 1)}
    for make in (keras.layers.Conv2DTranspose, LowRankConv2DTranspose):
        with pytest.raises(ValueError, match="`output_padding`"):
            make(**arguments)


@every
def test_inputs_of_another_shape_are_refused(layer_class):
    layer = layer_class(4, 3)
    shape = LAYERS[layer_class][0]
    layer.build((None, *shape))
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 2"):
        layer(draw(2, *shape[:-1], 3))
    with pytest.raises(ValueError, match=rf"ndim={len(shape) + 1}"):
        layer(draw(2, *shape[1:]))
    with pytest.raises(ValueError, match="None"):
        layer_class(4, 3).build((None, *shape[:-1], None))


@pytest.mark.parametrize("name", ["kernel_constraint", "lora_rank"])
def test_argument_that_would_be_ignored_raises(name):
    with pytest.raises(ValueError, match=f"`{name}` must be None in a low-rank layer"):
        LowRankConv2DTranspose(4, 3, **{name: 2})
