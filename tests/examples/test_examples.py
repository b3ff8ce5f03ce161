"""What the examples share: one network by every method, its batches, and the merging of runs."""

import importlib
import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from example_programs import EXAMPLES, imported
from reference.two_layers import NEEDS_MUON

from keras_lowrank.reporting.compression import count_weights

RANKS = [4, 5]


@pytest.fixture
def example(monkeypatch):
    """Imports a module of the examples, which import each other by name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    pytest.importorskip("rich", reason="the examples need the packages in the extra `examples`")
    return importlib.import_module


def build(layers):
    inputs = keras.Input((8, 8, 3))
    x = layers.conv(6, 3, padding="same", strides=2, use_bias=False)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = layers.dense(16, activation="relu")(keras.layers.Flatten()(x))
    return layers.model(inputs, keras.layers.Dense(10)(x))


def images(count=2):
    return np.random.default_rng(0).random((count, 8, 8, 3)).astype("float32")


def test_baselines_have_the_parameters_of_the_low_rank_network(example):
    methods = example("methods")
    full, low, two = (
        count_weights(build(layers))
        for layers in (methods.FullRank(), methods.LowRank(RANKS), methods.TwoFactor(RANKS))
    )
    assert full.full == low.full == 27 * 6 + 96 * 16 + 160
    assert two.full == low.factored == 4 * (27 + 6) + 5 * (96 + 16) + 160


def test_two_factors_start_balanced_from_the_svd_of_a_drawn_kernel(example):
    methods = example("methods")
    model = build(methods.TwoFactor([6, 16]))
    first, second = model.get_layer("matrix_2_a").kernel, model.get_layer("matrix_2").kernel
    gram = np.transpose(first) @ np.asarray(first)
    np.testing.assert_allclose(gram, second @ np.transpose(second), atol=1e-5)
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-5)
    # At the largest rank nothing is cut, and the entries are those of "glorot_uniform".
    assert np.mean(np.square(first @ second)) == pytest.approx(2 / (96 + 16), rel=0.1)


def test_two_factors_go_on_from_a_full_rank_network(example):
    methods = example("methods")
    full = build(methods.FullRank())
    for variable in full.variables:  # biases and statistics too
        variable.assign(variable + 0.1 * keras.random.uniform(variable.shape))
    weights = methods.weights_by_name(full)
    keras.utils.clear_session()  # the names of Keras's layers start anew, as in a run
    same = build(methods.TwoFactor([6, 16], weights))
    np.testing.assert_allclose(same(images()), full(images()), atol=1e-4)
    keras.utils.clear_session()
    cut = build(methods.TwoFactor(RANKS, weights))
    kernel = cut.get_layer("matrix_2_a").kernel @ cut.get_layer("matrix_2").kernel
    tail = np.linalg.svd(weights["matrix_2"][0], compute_uv=False)[RANKS[1] :]
    error = np.linalg.norm(kernel - weights["matrix_2"][0])
    assert error == pytest.approx(np.linalg.norm(tail), rel=1e-4)


def test_two_factors_of_the_spatial_form_have_its_parameters_and_kernels(example):
    methods = example("methods")
    low = count_weights(build(methods.LowRank(RANKS, "spatial")))
    two = count_weights(build(methods.TwoFactor(RANKS, factorization="spatial")))
    assert two.full == low.factored == 4 * (9 + 18) + 5 * (96 + 16) + 160
    keras.utils.clear_session()  # the names of Keras's layers start anew, as in a run
    full = build(methods.FullRank())
    weights = methods.weights_by_name(full)
    keras.utils.clear_session()
    same = build(methods.TwoFactor([9, 16], weights, "spatial"))
    np.testing.assert_allclose(same(images()), full(images()), atol=1e-4)


def test_the_three_factors_of_a_tucker_kernel_have_its_parameters_and_kernel(example):
    methods = example("methods")
    low = count_weights(build(methods.LowRank([2, 5], "tucker")))
    ranks = [2, 2, 5]  # of both sides of the convolution, and of the dense layer
    three = build(methods.TwoFactor(ranks, factorization="tucker"))
    convolutions = [three.get_layer(f"matrix_1{mark}") for mark in ("_a", "_b", "")]
    assert [one.kernel_size for one in convolutions] == [(1, 1), (3, 3), (1, 1)]
    assert [one.strides for one in convolutions] == [(1, 1), (2, 2), (1, 1)]
    assert count_weights(three).full == low.factored
    assert low.factored == 2 * 3 + 9 * 4 + 2 * 6 + 5 * (96 + 16) + 160
    # Where the window has one place, they are the balanced factors of a matrix.
    a, b, c = methods.balanced_tucker_factors(np.random.default_rng(0).random((1, 1, 8, 6)), 4, 4)
    np.testing.assert_allclose(a.T @ a, b[0, 0] @ b[0, 0].T, atol=1e-10)
    np.testing.assert_allclose(b[0, 0].T @ b[0, 0], c @ c.T, atol=1e-10)
    keras.utils.clear_session()  # the names of Keras's layers start anew, as in a run
    full = build(methods.FullRank())
    weights = methods.weights_by_name(full)
    keras.utils.clear_session()
    same = build(methods.TwoFactor([3, 6, 16], weights, "tucker"))
    np.testing.assert_allclose(same(images()), full(images()), atol=1e-4)
    keras.utils.clear_session()
    a, b, c = (
        build(methods.TwoFactor([2, 4, 16], weights, "tucker")).get_layer(f"matrix_1{mark}").kernel
        for mark in ("_a", "_b", "")
    )
    kernel = np.asarray(weights["matrix_1"][0], "float64")
    tails = [
        np.linalg.svd(np.moveaxis(kernel, axis, 0).reshape(rank, -1), compute_uv=False)[cut:]
        for axis, rank, cut in ((2, 3, 2), (3, 6, 4))
    ]
    error = np.linalg.norm(a[0, 0] @ np.asarray(b) @ c[0, 0] - kernel)
    assert np.linalg.norm(tails[0]) < error <= np.linalg.norm(np.concatenate(tails)) + 1e-5


def test_the_vision_transformer_is_one_network_by_every_method(example):
    networks, methods = example("cifar10_networks"), example("methods")
    low, full = (networks.vit(by, width=16) for by in (methods.LowRank([]), methods.FullRank()))
    two = networks.vit(methods.TwoFactor(list(low.ranks.values())), width=16)
    counts = count_weights(low)
    assert len(low.ranks) == 1 + 4 * 6
    assert count_weights(full).full == counts.full == 48 * 16 + 4 * 8 * 16 * 16 + 160
    assert count_weights(two).full == counts.factored
    # No two patches share a position.
    positions = networks._positions(8, 8, 16).reshape(64, 16)
    assert len(np.unique(positions.round(3), axis=0)) == 64
    assert full(np.zeros((1, 32, 32, 3), "float32")).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "channels", "units"),
    [
        ("vgg11", [3, 1, 2, 4, 4, 8, 8, 8, 8], [8]),
        ("vgg16", [3, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8], [8, 64, 64]),
        ("alexnet", [3, 1, 3, 6, 4, 4], [16, 64, 64]),
    ],
)
def test_convolutional_networks_have_their_kernels_by_every_method(example, name, channels, units):
    """`channels` and `units` (inputs of the dense layers) are those of width 1."""
    network, methods = getattr(example("cifar10_networks"), name), example("methods")
    low, full = (network(by, width=4) for by in (methods.LowRank([]), methods.FullRank()))
    two = network(methods.TwoFactor(list(low.ranks.values())), width=4)
    channels, units = channels[:1] + [4 * c for c in channels[1:]], [4 * n for n in units] + [10]
    weights = sum(9 * n * m for n, m in itertools.pairwise(channels))
    weights += sum(n * m for n, m in itertools.pairwise(units))
    counts = count_weights(low)
    assert len(low.ranks) == len(channels) - 2 + len(units) - 2  # but the first and the last
    assert count_weights(full).full == counts.full == weights
    assert count_weights(two).full == counts.factored
    assert full(np.zeros((1, 32, 32, 3), "float32")).shape == (1, 10)


def test_normalization_is_that_of_keras(example):
    own = example("cifar10_networks").BatchNormalization()
    x = tf.constant(np.float32([1.0, 3.0, 0.1]) * images()[:, :2, :2] + 1.0)
    found = []
    for layer in (own, keras.layers.BatchNormalization()):
        layer.build(x.shape)
        layer.gamma.assign([0.5, 2.0, 1.0])
        for _ in range(3):  # the statistics move
            with tf.GradientTape() as tape:
                tape.watch(x)
                outputs = layer(x, training=True)
                loss = tf.reduce_sum(outputs**3)
        gradients = tape.gradient(loss, [x, *layer.trainable_variables])
        found.append([outputs, *gradients, *layer.weights, layer(x)])
    for ours, expected in zip(*found):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_too_few_ranks_error(example):
    with pytest.raises(ValueError, match=r"one rank for each .* Received: ranks=\[4\]"):
        build(example("methods").LowRank([4]))


def test_batches_go_on_where_other_epochs_ended(example):
    image_data = example("image_data")
    pixels = (255 * images(20)).astype("uint8")
    split = image_data.Split(pixels, np.arange(20))

    def epochs(count, **options):
        batches = split.training_batches(8, 0, image_data.flip_and_shift, **options)
        return [[(x.numpy(), y.numpy()) for x, y in batches] for _ in range(count)]

    whole, rest = epochs(3), epochs(1, first_epoch=2)
    assert [sorted(np.concatenate([y for _, y in epoch])) for epoch in whole] == [
        list(range(20))
    ] * 3
    for (x, y), (other_x, other_y) in zip(whole[2], rest[0]):
        np.testing.assert_array_equal(y, other_y)
        np.testing.assert_array_equal(x, other_x)
    assert not np.array_equal(whole[0][0][1], whole[1][0][1])


def test_the_optimizer_and_its_schedule_are_those_of_the_flags():
    settings = {"learning_rate": 0.5, "schedule": "cosine", "warmup": 0.25, "weight_decay": 0.1}
    with imported("training", "frontier", "image_data") as training:
        with flagsaver.flagsaver(**settings, optimizer="adam"):
            adam = training._optimizer(40, None)
        with flagsaver.flagsaver(**settings, optimizer="sgd", momentum=0.8):
            sgd = training._optimizer(40, None)
        constant = training._optimizer(40, None)
    assert (type(adam), type(sgd)) == (keras.optimizers.Adam, keras.optimizers.SGD)
    assert sgd.momentum == 0.8
    for optimizer in (adam, sgd):
        assert optimizer.weight_decay == 0.1
        rates = []
        for step in (0, 10, 25, 40):
            optimizer.iterations.assign(step)
            rates.append(float(optimizer.learning_rate))
        # From a tenth of the rate, in a quarter of the steps; halfway down, and at the end.
        np.testing.assert_allclose(rates, [0.05, 0.5, 0.25, 0.0], atol=1e-6)
    assert (type(constant), constant.weight_decay) == (keras.optimizers.SGD, None)
    assert float(constant.learning_rate) == pytest.approx(0.05)


@NEEDS_MUON
def test_by_muon_the_layer_of_the_classes_moves_as_keras_advises(example):
    networks, methods = example("cifar10_networks"), example("methods")
    flag_values = flagsaver.flagsaver(optimizer="muon", adam_lr_ratio=0.25)
    with imported("training", "frontier", "image_data") as training, flag_values:
        names = ("resnet20", "vgg", "vgg11", "vgg16", "alexnet", "vit")
        for network in (getattr(networks, name) for name in names):
            for method in (methods.FullRank(), methods.LowRank([]), methods.TwoFactor([2] * 40)):
                model = network(method, width=4)
                optimizer = training._optimizer(40, model)
                assert (optimizer.momentum, optimizer.adam_lr_ratio) == (0.95, 0.25)
                (name,) = optimizer.exclude_layers
                excluded = [v for v in model.trainable_variables if re.search(name, v.path)]
                assert excluded == model.layers[-1].trainable_variables


def _report(seeds, accuracy=0.9, **settings):
    runs = [
        {
            "method": "parallel",
            "tolerance": None,
            "compression": 0.9,
            "seed": seed,
            "accuracy": accuracy + 0.01 * seed,
            "ranks": [3, 3 + seed],
            "weights": {"full": 1000, "factored": 100, "training": 200},
            "seconds_per_epoch": 1.0,
            "traces": 1,
        }
        for seed in seeds
    ]
    head = {"name": "net", "title": "a network", "settings": settings, "versions": {}}
    return {**head, "runs": runs}


def test_merged_runs_are_one_row(example):
    frontier = example("frontier")
    merged = frontier.merge([_report([2]), _report([0, 1]), _report([1], accuracy=0.1)])
    assert [run["seed"] for run in merged["runs"]] == [0, 1, 2]
    (row,) = frontier.table(merged["runs"])
    assert row["test_accuracy_mean"] == pytest.approx(91.0)  # of a run made twice, the first
    assert row["test_accuracy_std"] == pytest.approx(1.0)
    assert (row["seeds"], row["ranks"], row["evaluation_compression"]) == (3, [3, 4], 0.9)


def test_plots(example, tmp_path):
    report = _report([0, 1])
    example("frontier").draw(tmp_path, report)
    assert [one.name for one in tmp_path.iterdir()] == ["net.png"]  # no ranks over epochs
    for run in report["runs"]:
        run["ranks_by_epoch"] = {"dense": [4, 3, 3]}
    example("frontier").draw(tmp_path, report)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["net.png", "net_ranks.png"]
    assert all(one.stat().st_size > 5000 for one in tmp_path.iterdir())


def test_merging_other_settings_error(example):
    with pytest.raises(SystemExit, match="must have the same settings"):
        example("frontier").merge([_report([0], epochs=1), _report([1], epochs=2)])
