"""LowRankConv2D with `factorization="tucker"`: two bases and a core for each place."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import tucker as reference
from reference.cases import partly_slow
from reference.conversion import check_same
from reference.convolutions import draw, network
from reference.exported import operations, path_for, predict_file
from reference.full_rank import compare_step_by_step
from reference.truncation import RelativeTolerance
from reference.two_layers import NEEDS_MUON

from keras_lowrank import (
    Budget,
    LowRankConv2D,
    LowRankModel,
    Parallel,
    RankAdaptive,
    optimizers,
    to_keras,
)


def tucker(*args, **kwargs):
    return LowRankConv2D(*args, factorization="tucker", **kwargs)


def test_tucker_conv2d_basics():
    layer = tucker(6, (3, 2), rank=4, activation="relu", kernel_regularizer="l2")
    assert layer.rank == 4
    outputs = layer(draw(2, 8, 7, 2))
    assert outputs.shape == (2, 6, 6, 6)
    assert [tuple(v.shape) for v in layer.weights] == [(2, 2), (6, 2, 4), (6, 4), (6,)]
    assert layer.kernel.shape == layer.kernel_shape == (3, 2, 2, 6)
    assert layer.rank == {"input": 2, "output": 4}
    config = layer.get_config()
    assert config["factorization"] == "tucker" and config["rank"] == 4
    assert LowRankConv2D.from_config(config).get_config() == config
    np.testing.assert_allclose(layer.losses, [0.01 * np.sum(np.square(layer.kernel))], rtol=1e-5)
    values = np.linalg.svd(np.moveaxis(layer.kernel, 2, 0).reshape(2, -1), compute_uv=False)
    np.testing.assert_allclose(layer.factors.singular_values(), values, rtol=1e-5)


def test_the_kernel_starts_with_the_energy_of_keras_or_its_best_approximation():
    layer = tucker(64, 3, rank=16)
    layer.build((None, 8, 8, 48))
    energy = 2.0 / (9 * 48 + 9 * 64) * 9 * 48 * 64
    np.testing.assert_allclose(np.sum(np.square(layer.kernel)), energy, rtol=0.1)
    exact = draw(9, 5, 2) @ draw(2, 6)
    layer = tucker(6, 3, rank=5, kernel_initializer=lambda shape, dtype=None: exact.reshape(shape))
    layer.build((None, 8, 8, 5))
    np.testing.assert_allclose(layer.kernel, exact.reshape(3, 3, 5, 6), atol=1e-5)


@pytest.mark.parametrize(
    "channels, filters, size", partly_slow([(1, 8, 3), (7, 2, 1)], [(8, 1, 3), (2, 7, 1)])
)
def test_awkward_shapes_train(channels, filters, size):
    inputs = keras.Input((6, 6, channels))
    model = LowRankModel(inputs, tucker(filters, size)(inputs))
    model.compile(keras.optimizers.SGD(0.05, 0.9), "mse", run_eagerly=True)
    x, y = draw(4, 6, 6, channels), draw(4, *model.output_shape[1:])
    losses = model.fit(x, y, epochs=5, batch_size=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("adapt_every", partly_slow([2], [1]))
def test_at_full_rank_every_step_is_that_of_keras(adapt_every):
    full = keras.Model(*network(keras.layers.Conv2D, bias_initializer="normal"))
    low = LowRankModel(*network(tucker, rank=9))
    for name in ("one", "two"):
        old, new = full.get_layer(name), low.get_layer(name)
        *_, n, m = old.kernel.shape
        new.factors.assign((np.eye(n), np.reshape(old.kernel, (-1, n, m)), np.eye(m)))
        new.bias.assign(old.bias)
    low.layers[-1].set_weights(full.layers[-1].get_weights())
    optimizer = keras.optimizers.SGD(0.2, momentum=0.5)
    low.compile(optimizer, "mse", integrator=Parallel(adapt_every), truncation=0.0)
    full.compile(keras.optimizers.SGD(0.2, momentum=0.5), "mse")
    compare_step_by_step(low, full)


def test_steps_are_those_of_the_reference():
    keras.utils.set_random_seed(0)
    inputs, tau = keras.Input((6, 6, 7)), 0.35
    layer = tucker(8, (2, 3), rank=4, use_bias=False, dtype="float64")
    model = LowRankModel(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(0.5), "mse", integrator=Parallel(1), truncation=tau)
    x, y = (draw(5, *shape).astype("float64") for shape in ((6, 6, 7), model.output_shape[1:]))

    def gradient(kernel):
        kernel = tf.constant(kernel.reshape(2, 3, 7, 8))
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            loss = tf.reduce_mean((tf.nn.conv2d(x, kernel, 1, "VALID") - y) ** 2)
        return tape.gradient(loss, kernel).numpy().reshape(6, 7, 8)

    rule = RelativeTolerance(tau / np.sqrt(2.0))
    layer.S.assign(layer.S * 0.4 ** np.arange(4.0)[:, None] * 0.5 ** np.arange(4.0))
    factors = tuple(part.numpy() for part in layer.factors.read())
    seen = set()
    for _ in range(4):
        model.train_on_batch(x, y)
        factors = reference.step(factors, gradient, 0.5, lambda values, mode: rule(values))
        assert tuple(layer.rank.values()) == factors[1].shape[1:]
        expected = reference.kernel_of(*factors).reshape(layer.kernel.shape)
        np.testing.assert_allclose(layer.kernel, expected, rtol=1e-5, atol=1e-7)
        seen.add(factors[1].shape)
    assert len(seen) > 1 and rule.margin > 1e-4


def teacher(rank):
    """Images, and their convolution with a kernel of small ranks, again and again."""
    keras.utils.set_random_seed(0)
    x = draw(8, 6, 6, 10)
    y = tucker(12, 3, rank=rank, use_bias=False)(x)
    return tf.data.Dataset.from_tensors((x, y)).repeat()


@pytest.mark.parametrize(
    "start, integrator, optimizer",
    partly_slow(
        [(1, "rank_adaptive", keras.optimizers.SGD(1.0, 0.9))],
        [
            (9, "parallel", keras.optimizers.SGD(1.0, 0.9)),
            (9, "rank_adaptive", keras.optimizers.SGD(1.0, 0.9)),
            (1, "rank_adaptive", keras.optimizers.Adam(0.02)),
            (9, "parallel", keras.optimizers.Adam(0.02)),
            (9, "parallel", keras.optimizers.RMSprop(0.003)),
        ],
    ),
)
def test_training_finds_the_ranks_of_a_teacher(start, integrator, optimizer):
    data = teacher(3)
    inputs = keras.Input((6, 6, 10))
    model = LowRankModel(inputs, tucker(12, 3, rank=start, use_bias=False, name="conv")(inputs))
    model.compile(optimizer, "mse", integrator=integrator, truncation=0.05)
    losses = model.fit(data, epochs=4, steps_per_epoch=100, verbose=0, shuffle=False).history[
        "loss"
    ]
    assert losses[-1] < 1e-2 * losses[0]
    assert model.ranks == {"conv/input": 3, "conv/output": 3}


@NEEDS_MUON
@pytest.mark.slow
def test_muon_finds_the_ranks_of_a_teacher():
    inputs = keras.Input((6, 6, 10))
    model = LowRankModel(inputs, tucker(12, 3, rank=9, use_bias=False, name="conv")(inputs))
    rate = keras.optimizers.schedules.PolynomialDecay(0.03, 380, 1e-5)
    model.compile(keras.optimizers.Muon(rate, weight_decay=0.0), "mse", truncation=0.05)
    fit = {"epochs": 4, "steps_per_epoch": 100, "verbose": 0, "shuffle": False}
    losses = model.fit(teacher(3), **fit).history["loss"]
    assert losses[-1] < 1e-2 * losses[0]
    assert model.ranks == {"conv/input": 3, "conv/output": 3}


@pytest.mark.slow
def test_a_budget_is_met_and_spent():
    inputs = keras.Input((6, 6, 10))
    x = tucker(12, 3, rank=10, use_bias=False)(inputs)
    x = LowRankConv2D(16, 3, rank=16, factorization="spatial", use_bias=False)(x)
    model = LowRankModel(inputs, keras.layers.Conv2D(12, 1, use_bias=False)(x)[:, :2, :2])
    budget = Budget(compression=0.7, steps=200)
    model.compile(keras.optimizers.SGD(0.1, 0.9), "mse", integrator="parallel", truncation=budget)
    data = teacher(3).map(lambda x, y: (x, y[:, :2, :2]))
    model.fit(data, epochs=1, steps_per_epoch=250, verbose=0, shuffle=False)
    count = model.compression()
    assert 0.25 * count.full < count.factored <= 0.3 * count.full


def test_a_kernel_of_zeros_learns_at_its_ranks():
    inputs = keras.Input((6, 6, 10))
    conv = tucker(12, 3, rank=4, use_bias=False, kernel_initializer="zeros")
    model = LowRankModel(inputs, conv(inputs))
    model.compile(keras.optimizers.SGD(1.0), "mse", integrator="fixed_rank")
    fit = {"epochs": 2, "steps_per_epoch": 40, "verbose": 0, "shuffle": False}
    losses = model.fit(teacher(3), **fit).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert conv.rank == {"input": 4, "output": 4}


@pytest.fixture(scope="module")
def trained():
    """A network whose ranks have changed."""
    keras.utils.set_random_seed(0)
    model = LowRankModel(*network(tucker, rank=6, bias_initializer="normal"))
    optimizer, integrator = keras.optimizers.SGD(0.05, 0.5), Parallel(adapt_every=2)
    model.compile(optimizer, "mse", integrator=integrator, truncation=0.5)
    losses = model.fit(draw(8, 7, 6, 3), draw(8, 3), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0] and model.ranks["two/output"] < 6
    return model


def test_ranks_come_back_from_files(trained, tmp_path):
    trained.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = draw(4, 7, 6, 3)
    assert again.ranks == trained.ranks
    np.testing.assert_array_equal(again(x), trained(x))
    again.fit(x, draw(4, 3), verbose=0)  # with the moments of the file
    ranks = [
        (trained.ranks[f"{name}/input"], trained.ranks[f"{name}/output"]) for name in ("one", "two")
    ]
    sizes = [(3, 8, 9), (8, 9, 6)]
    held = sum(p * n + q * m + k * p * q for (p, q), (n, m, k) in zip(ranks, sizes))
    assert trained.compression().factored == held + 9 * 3
    lines = []
    trained.summary(print_fn=lines.append)
    assert "6 x 8 x 9" in lines[-1]


def test_weights_of_other_ranks_can_be_set_and_wrong_ones_not(trained):
    layer = tucker(9, (2, 3), rank=1)
    layer.build((None, 7, 6, 8))
    layer.set_weights(trained.get_layer("two").get_weights())
    assert layer.rank == trained.get_layer("two").rank
    u, s, v, bias = layer.get_weights()
    with pytest.raises(ValueError, match=r"must have the shapes U \(8, p\), S \(6, p, q\)"):
        layer.set_weights([u, s[:, :, :1], v, bias])


def test_to_keras(trained):
    for style in ("smaller", "merged"):
        check_same(trained, to_keras(trained, style), draw(4, 7, 6, 3))


@pytest.mark.parametrize("format", ["tf_saved_model", "litert"])
def test_exports_agree_with_the_model(trained, tmp_path, format):
    path, x = path_for(tmp_path, format), draw(3, 7, 6, 3)
    trained.export(path, format=format, verbose=0)
    (outputs,) = predict_file(path, format, [x])
    np.testing.assert_allclose(outputs, trained(x), atol=1e-4)
    if format == "litert":
        assert not operations(path) & {"SHAPE", "PACK", "GATHER", "SLICE", "SPLIT", "PAD", "ADD_N"}


@NEEDS_MUON
def test_muon_at_full_rank_is_that_of_the_matrix():
    models = []
    for form, rank in (("matrix", 8), ("tucker", 9)):
        inputs = keras.Input((6, 6, 7))
        conv = LowRankConv2D(8, 3, factorization=form, rank=rank, use_bias=False)
        models.append(LowRankModel(inputs, conv(inputs)))
        optimizer, integrator = keras.optimizers.Muon(0.03), Parallel(adapt_every=1)
        models[-1].compile(optimizer, "mse", integrator=integrator, truncation=0.0)
    matrix, low = (model.layers[-1] for model in models)
    low.factors.assign((np.eye(7), np.reshape(matrix.kernel, (9, 7, 8)), np.eye(8)))
    start = np.array(low.kernel)
    rng = np.random.default_rng(0)
    for _ in range(6):
        x, y = rng.standard_normal((2, 16, 6, 6, 8)).astype("float32")
        losses = [model.train_on_batch(x[..., :7], y[:, :4, :4]) for model in models]
        np.testing.assert_allclose(*losses, rtol=1e-4)
    np.testing.assert_allclose(low.kernel, matrix.kernel, atol=1e-4)
    assert np.abs(low.kernel - start).max() > 1e-2


@NEEDS_MUON
def test_a_muon_step_is_about_as_long_as_that_of_the_matrix():
    lengths, x = [], draw(8, 6, 6, 16)
    for form, rank in (("matrix", 16), ("tucker", 16), ("tucker", 8)):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6, 6, 16))
        layer = LowRankConv2D(16, 3, factorization=form, rank=rank, use_bias=False)
        model = LowRankModel(inputs, layer(inputs))
        model.compile(keras.optimizers.Muon(1e-3), "mse", integrator="parallel")
        before = np.reshape(layer.kernel, (-1, 16))
        model.train_on_batch(x, draw(8, 4, 4, 16))
        step = np.reshape(layer.kernel, (-1, 16)) - before
        lengths.append((np.linalg.norm(step, 2), np.linalg.norm(step)))
    (top, length), whole, half = lengths
    np.testing.assert_allclose(whole, (top, length), rtol=0.1)
    # Its rank as a matrix (kh kw c, f) is twice its own, and the largest singular value the same.
    assert 0.8 * top < half[0] < 1.25 * top and 0.7 * length < half[1] < 1.1 * length


class Plain(keras.optimizers.SGD):
    """SGD with a rule for matrices."""


@optimizers.register_rule(Plain)
class PlainRule(optimizers.Rule):
    def direction(self, gradient, state, point, learning_rate, step):
        return optimizers.Direction(gradient), state


def test_errors():
    with pytest.raises(ValueError, match=r"must be 'matrix', 'spatial' or 'tucker'.*'cp'"):
        LowRankConv2D(4, 3, factorization="cp")
    for options, words in (
        ({"optimizer": Plain(0.1)}, "Plain has no rule for Tucker-2 kernels"),
        ({"optimizer": optimizers.StiefelAdam()}, "StiefelAdam has no rule for Tucker-2 kernels"),
        ({"integrator": RankAdaptive(1)}, "`adapt_every=1` of 'rank_adaptive'"),
    ):
        inputs = keras.Input((6, 6, 3))
        model = LowRankModel(inputs, tucker(4, 3, rank=2)(inputs))
        options = {"optimizer": "sgd", "integrator": "parallel", **options}
        with pytest.raises(ValueError, match=words):
            model.compile(loss="mse", run_eagerly=True, **options)
            model.train_on_batch(draw(2, 6, 6, 3), draw(2, 4, 4, 4))
