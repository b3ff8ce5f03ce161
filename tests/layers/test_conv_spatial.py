"""LowRankConv2D with `factorization="spatial"`: height and width apart."""

import keras
import numpy as np
import pytest
from reference.cases import partly_slow
from reference.conversion import check_same
from reference.convolutions import draw, network, with_kernel_of
from reference.exported import operations, path_for, predict_file
from reference.full_rank import compare_step_by_step

from keras_lowrank import LowRankConv2D, LowRankModel, Parallel, RankAdaptive, to_keras
from keras_lowrank.manifold.point import Point


def spatial(*args, **kwargs):
    return LowRankConv2D(*args, factorization="spatial", **kwargs)


def test_spatial_conv2d_basics():
    layer = spatial(6, (3, 2), rank=4, activation="relu", kernel_regularizer="l2")
    outputs = layer(draw(2, 8, 7, 2))
    assert outputs.shape == (2, 6, 6, 6)
    assert [tuple(v.shape) for v in layer.weights] == [(6, 4), (4, 4), (12, 4), (6,)]
    assert layer.kernel.shape == layer.kernel_shape == (3, 2, 2, 6)
    config = layer.get_config()
    assert config["factorization"] == "spatial"
    assert LowRankConv2D.from_config(config).get_config() == config
    np.testing.assert_allclose(layer.losses, [0.01 * np.sum(np.square(layer.kernel))], rtol=1e-5)
    largest = spatial(6, 3)
    largest.build((None, 8, 8, 4))
    n, m, rank = 12, 18, largest.rank
    assert rank * (n + m + rank) <= n * m < (rank + 1) * (n + m + rank + 1)


@pytest.mark.parametrize("integrator", partly_slow([Parallel(1)], [RankAdaptive(1)]))
def test_at_full_rank_every_step_is_that_of_keras(integrator):
    full = keras.Model(*network(keras.layers.Conv2D, bias_initializer="normal"))
    low = LowRankModel(*network(spatial, rank=9))
    for name in ("one", "two"):
        old, new = full.get_layer(name), low.get_layer(name)
        matrix = np.asarray(new.matricization.matrix(old.kernel), "float64")
        u, values, vt = np.linalg.svd(matrix, full_matrices=False)
        parts = (u, np.diag(values), vt.T)
        new.factors.assign(Point(*(part.astype("float32") for part in parts)))
        new.bias.assign(old.bias)
    low.layers[-1].set_weights(full.layers[-1].get_weights())
    low.compile(keras.optimizers.SGD(0.2), "mse", integrator=integrator, truncation=0.0)
    full.compile(keras.optimizers.SGD(0.2), "mse")
    compare_step_by_step(low, full)


@pytest.fixture(scope="module")
def trained():
    """A network whose ranks have changed."""
    keras.utils.set_random_seed(0)
    model = LowRankModel(*network(spatial, rank=6, bias_initializer="normal"))
    optimizer, integrator = keras.optimizers.SGD(0.05), Parallel(adapt_every=2)
    model.compile(optimizer, "mse", integrator=integrator, truncation=0.5)
    losses = model.fit(draw(8, 7, 6, 3), draw(8, 3), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0] and min(model.ranks.values()) < 6
    return model


def test_ranks_come_back_from_files(trained, tmp_path):
    trained.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = draw(4, 7, 6, 3)
    assert again.ranks == trained.ranks
    np.testing.assert_array_equal(again(x), trained(x))
    assert again.get_layer("two").factorization == "spatial"
    sizes = {"one": 9 + 24, "two": 16 + 27}
    held = sum(rank * sizes[name] for name, rank in trained.ranks.items())
    assert trained.compression().factored == held + 9 * 3


@pytest.mark.parametrize("style", ["factored", "merged"])
def test_to_keras(trained, style):
    plain = to_keras(trained, style)
    check_same(trained, plain, draw(4, 7, 6, 3))
    rank = trained.ranks["two"]
    shapes = [tuple(weight.shape) for weight in plain.get_layer("two").weights]
    factored = [(2, 1, 8, rank), (1, 3, rank, 9), (9,)]
    assert shapes == (factored if style == "factored" else [(2, 3, 8, 9), (9,)])


@pytest.mark.parametrize("format", ["tf_saved_model", "litert"])
def test_exports_agree_with_the_model(trained, tmp_path, format):
    path, x = path_for(tmp_path, format), draw(3, 7, 6, 3)
    trained.export(path, format=format, verbose=0)
    (outputs,) = predict_file(path, format, [x])
    np.testing.assert_allclose(outputs, trained(x), atol=1e-4)
    if format == "litert":
        assert not operations(path) & {"SHAPE", "PACK", "GATHER", "SLICE", "SPLIT", "PAD", "ADD_N"}


@pytest.mark.parametrize("kernel_size, strides", [(1, 2), (3, 2), (4, 3), (3, 1)])
def test_open_width(kernel_size, strides):
    inputs = keras.Input((None, None, 2))
    options = {"padding": "same", "strides": strides}
    conv = spatial(6, kernel_size, rank=2, bias_initializer="normal", **options)
    model = LowRankModel(inputs, conv(inputs))
    assert model.output_shape == (None, None, None, 6)
    for width in range(1, 8):
        x = draw(1, 5, width, 2)
        expected = with_kernel_of(conv, 2, **options)(x)
        np.testing.assert_allclose(model(x), expected, atol=1e-5)


def test_open_width_is_exported_to_litert(tmp_path):
    inputs = keras.Input((None, None, 2))
    model = LowRankModel(inputs, spatial(6, 3, rank=2, padding="same", strides=2)(inputs))
    path = path_for(tmp_path, "litert")
    model.export(path, format="litert", verbose=False)
    (outputs,) = predict_file(path, "litert", [draw(1, 5, 7, 2)])
    np.testing.assert_allclose(outputs, model(draw(1, 5, 7, 2)), atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match=r"at most min\(n, m\) = 6 for its 6 x 12 kernel"):
        spatial(4, 3, rank=7).build((None, 8, 8, 2))
    with pytest.raises(ValueError, match="`groups` must be 1"):
        spatial(4, 3, groups=2)
