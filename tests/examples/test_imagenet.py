"""The example on ImageNet, on a few made-up images in the format of the set."""

import contextlib
import io
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import flags
from absl.testing import flagsaver
from example_programs import imported

from keras_lowrank import LowRankModel

MODULES = ("training", "frontier", "photographs", "image_data")
SMALL = {"size": 32, "epochs": 1, "batch_size": 4, "learning_rate": 0.01, "full_rank": True}


@pytest.fixture(scope="module")
def example():
    with imported("imagenet", *MODULES) as module:
        yield module


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder of tensorflow-datasets with 8 and 5 images of several sizes as ImageNet."""
    folder, random = tmp_path_factory.mktemp("tfds"), np.random.default_rng(0)

    def examples(count):
        for i in range(count):
            shape = (40 + 9 * i, 90 - 7 * i, 3)
            image = random.integers(0, 255, shape).astype("uint8")
            yield {"image": image, "label": i, "file_name": f"{i}.JPEG"}

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=1000),
            "file_name": tfds.features.Text(),
        }
    )
    shapes = {
        "image": tf.TensorSpec((None, None, 3), tf.uint8),
        "label": tf.TensorSpec((), tf.int64),
        "file_name": tf.TensorSpec((), tf.string),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="imagenet2012",
        version="5.1.0",
        features=features,
        split_datasets={
            split: tf.data.Dataset.from_generator(
                lambda count=count: examples(count), output_signature=shapes
            ).apply(tf.data.experimental.assert_cardinality(count))
            for split, count in (("train", 8), ("validation", 5))
        },
        data_dir=str(folder),
    )
    return str(folder)


@pytest.fixture(scope="module")
def splits(example, stored):
    with flagsaver.flagsaver(data_dir=stored):
        return example.photographs.load("imagenet2012", 32)


def small(weights, input_tensor, classes, classifier_activation):
    """A small network with the layers and arguments of Keras's."""
    x = keras.layers.Conv2D(8, 7, strides=4, name="first")(input_tensor)
    x = y = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    y = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="middle")(y)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([x, y]))
    x = keras.layers.Dense(12, activation="relu", name="dense")(x)
    x = keras.layers.Dense(classes, activation=classifier_activation, name="last")(x)
    model = keras.Model(keras.utils.get_source_inputs(input_tensor), x)
    if weights:
        model.load_weights(weights)
    return model


@pytest.fixture
def small_network(example, monkeypatch):
    monkeypatch.setitem(example.NETWORKS, "resnet50", ("A small network", small))


def test_images_are_squares_in_a_new_order_every_epoch(example, splits):
    train, test = splits
    assert (train.size, test.size) == (8, 5)

    def epochs(count, **options):
        batches = train.training_batches(4, 0, example.photographs.random_part, **options)
        assert len(batches) == 2
        return [[(x.numpy(), y.numpy()) for x, y in batches] for _ in range(count)]

    whole, rest = epochs(3), epochs(1, first_epoch=2)
    orders = [np.concatenate([y for _, y in epoch]).tolist() for epoch in whole]
    assert [sorted(order) for order in orders] == [list(range(8))] * 3 and orders[0] != orders[1]
    assert np.concatenate([y for _, y in rest[0]]).tolist() == orders[2]
    images = whole[0][0][0]
    assert images.shape == (4, 32, 32, 3) and images.min() >= 0.0 and 0.5 < images.max() <= 1.0
    same = [next(x[y == 3] for x, y in epoch if 3 in y) for epoch in whole[:2]]
    assert not np.array_equal(*same)  # another part of the image
    (images, labels) = next(iter(test.test_batches()))
    assert images.shape == (5, 32, 32, 3) and sorted(labels.numpy()) == list(range(5))


def test_parts_of_a_split_have_its_other_images(splits):
    train, _ = splits

    def labels(split):
        return [int(label) for _, batch in split.test_batches() for label in batch]

    first, last = train.split(3)
    assert sorted(labels(first) + labels(last)) == list(range(8)) and last.size == 3
    assert labels(first.take(2)) == labels(first)[:2] and last.take(None) == last
    assert labels(last.take(9)) == labels(last)


def test_the_middle_of_an_image_and_random_parts_of_it(example):
    cut = example.photographs
    image = tf.reshape(tf.range(16 * 24 * 3), (16, 24, 3))
    np.testing.assert_array_equal(cut.middle(image), image[1:15, 5:19])
    parts = [cut.random_part(image, tf.constant([seed, 0])) for seed in range(40)]
    shares = [np.prod(part.shape[:2]) / (16 * 24) for part in parts]
    assert 0.05 < min(shares) < 0.3 and 0.6 < max(shares) <= 1.0
    mirrored = [part[0, 0, 0] > part[0, -1, 0] for part in parts if part.shape[1] > 1]
    assert 0.2 < np.mean(mirrored) < 0.8


def test_images_are_preprocessed_as_for_the_weights_of_keras(example, monkeypatch):
    def network(input_tensor, **options):
        source = keras.utils.get_source_inputs(input_tensor)
        return keras.Model(source, keras.layers.Identity()(input_tensor))

    monkeypatch.setitem(example.NETWORKS, "resnet50", ("None", network))
    images = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3)).astype("float32")
    expected = keras.applications.resnet.preprocess_input(images.copy())
    np.testing.assert_array_equal(expected, keras.applications.vgg16.preprocess_input(images + 0))
    with flagsaver.flagsaver(size=32):
        np.testing.assert_allclose(example.whole(10)(images / 255.0), expected, atol=1e-4)


@pytest.mark.parametrize("method", ["FullRank", "LowRank", "TwoFactor"])
def test_a_network_is_built_again_with_the_layers_of_a_method(example, method):
    import methods

    with flagsaver.flagsaver(size=32):
        inputs = keras.Input((32, 32, 3))
        model = small(None, 255.0 * inputs, 20, None)
    layers = getattr(methods, method)(*([] if method == "FullRank" else [[4, 3]]))
    again = layers.rebuild(model)
    assert again.output_shape == model.output_shape and again.count_params() != 0
    kept = {layer.name for layer in again.layers} & {"first", "middle", "dense", "last"}
    assert kept == {"first", "last"}
    counts = methods.count_weights(again)
    full = methods.count_weights(model).full
    if method == "FullRank":
        again.set_weights(model.get_weights())
        images = np.random.default_rng(0).random((2, 32, 32, 3)).astype("float32")
        np.testing.assert_allclose(again(images), model(images), rtol=1e-5)
    else:
        saved = 72 * 8 - 4 * (72 + 8) + 8 * 12 - 3 * (8 + 12)
        assert counts.factored == full - saved
    assert isinstance(again, LowRankModel) == (method == "LowRank")


@pytest.mark.parametrize("goal", [{"tolerance": 0.5}, {"compression": 0.03}])
def test_trained_weights_are_cut_and_trained_on(
    example, stored, small_network, tmp_path, monkeypatch, goal
):
    keras.utils.set_random_seed(1)
    with flagsaver.flagsaver(size=32):
        trained = example.whole(1000)
    trained.save_weights(tmp_path / "net.weights.h5")
    built = []
    convert = example.training.LowRank.convert
    monkeypatch.setattr(
        example.training.LowRank,
        "convert",
        lambda layers, model: built.append(convert(layers, model)) or built[-1],
    )
    given = {name: [str(share)] for name, share in goal.items()}
    weights = str(tmp_path / "net.weights.h5")
    # At a rate of 0 the weights stay what they were cut to.
    values = {**SMALL, "learning_rate": 0.0, "weight_decay": 0.0, "data_dir": stored, **given}
    _run(example, tmp_path, weights=weights, **values)
    (low,) = built
    assert "middle" in low.ranks and set(low.ranks) <= {"middle", "dense"}
    original, cut = trained.get_layer("middle").kernel, low.get_layer("middle").kernel
    error = np.linalg.norm(original - cut) / np.linalg.norm(original)
    assert 0.0 < error <= goal.get("tolerance", 1.0)
    head = trained.get_layer("last").kernel
    np.testing.assert_array_equal(head, low.get_layer("last").kernel)
    report = json.loads((tmp_path / "imagenet_resnet50.json").read_text())
    assert report["title"].endswith("on imagenet2012, 32 pixels, from the weights net.weights.h5")
    full, run = report["runs"]
    assert full["weights"]["full"] == run["weights"]["full"]
    saved = 1.0 - run["weights"]["factored"] / run["weights"]["full"]
    assert goal.get("compression", 0.01) <= saved < 0.05


def _run(example, folder, **values):
    """What the program prints."""
    printed = io.StringIO()
    tf.config.run_functions_eagerly(True)
    tf.data.experimental.enable_debug_mode()
    saved = flagsaver.flagsaver(**values, output_dir=str(folder))
    try:
        with contextlib.redirect_stdout(printed), saved:
            example.main([])
    finally:
        tf.config.run_functions_eagerly(False)
    return printed.getvalue()


def test_a_run_reports_both_accuracies_and_weights(example, stored, small_network, tmp_path):
    printed = _run(example, tmp_path, data_dir=stored, **SMALL)
    report = json.loads((tmp_path / "imagenet_resnet50.json").read_text())
    assert report["title"] == "A small network on imagenet2012, 32 pixels"
    full, low = report["runs"]
    assert (full["method"], low["method"], low["tolerance"]) == ("full_rank", "parallel", 0.1)
    for run in full, low:
        assert 0.0 <= run["accuracy"] <= run["top5_accuracy"] <= 1.0
    assert low["weights"]["full"] == full["weights"]["full"] > low["weights"]["factored"]
    assert "top 5" in printed and "test_top5_mean" in report["rows"][0]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet50", "vgg16"])
def test_the_networks_of_keras_train_from_scratch(example, stored, tmp_path, network):
    _run(example, tmp_path, data_dir=stored, network=network, **{**SMALL, "full_rank": False})
    (run,) = json.loads((tmp_path / f"imagenet_{network}.json").read_text())["runs"]
    assert len(run["ranks"]) == {"resnet50": 52, "vgg16": 14}[network]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"download": False}, r"imagenet2012/\S+ is not in .*--data_dir.*"),
        ({"dataset": "imagenet2013"}, "tensorflow-datasets must have .* Received: imagenet2013"),
        ({"weights": "none.h5", "data_dir": None}, "--weights none.h5 cannot be used: .*"),
    ],
)
def test_what_is_missing_is_one_line(example, stored, tmp_path, values, line):
    folder = stored if "data_dir" in values else str(tmp_path)
    values = {**SMALL, **values, "data_dir": folder}
    with flagsaver.flagsaver(**values), pytest.raises(SystemExit) as raised:
        example.main([])
    assert re.fullmatch(line, str(raised.value))


def test_wrong_flags_are_refused(example):
    with flagsaver.flagsaver(), pytest.raises(flags.Error, match="should be one of"):
        flags.FLAGS["network"].parse("resnet51")
    baselines = pytest.raises(flags.IllegalFlagValueError, match="start from scratch")
    with flagsaver.flagsaver(weights="imagenet"), baselines:
        flags.FLAGS.baselines = ["two_factor"]
