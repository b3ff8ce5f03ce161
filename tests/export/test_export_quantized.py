"""Quantised LiteRT files: smaller, near the model, checked on the data that decide."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from reference.cases import partly_slow

from keras_lowrank import LowRankConv2D, LowRankDense, LowRankModel
from keras_lowrank.export import pipeline

rng = np.random.default_rng(0)
IMAGES = rng.random((40, 12, 12, 1)).astype("float32")

# TensorFlow's own converter looks samples up in its own, deprecated interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 1), name="image")
    x = LowRankConv2D(16, 3, rank=4, activation="relu")(inputs)
    x = LowRankDense(200, rank=16, activation="relu")(keras.layers.Flatten()(x))
    return LowRankModel(inputs, LowRankDense(10, rank=4)(x))


@pytest.fixture(scope="module")
def labels(model):
    return model.predict(IMAGES, verbose=0).argmax(axis=-1)


def write(model, path, quantization, **options):
    model.export(path, "litert", verbose=False, quantization=quantization, **options)
    return path


def tensor_types(path):
    return {detail["dtype"] for detail in Interpreter(str(path)).get_tensor_details()}


def test_sizes_types_and_accuracy_follow_the_quantization(model, labels, tmp_path):
    sizes = {}
    for name in (None, "float16", "dynamic_int8", "int8"):
        options = {"representative_data": IMAGES} if name == "int8" else {}
        path = tmp_path / f"{name}.tflite"
        report = model.export(
            path,
            "litert",
            verbose=False,
            quantization=name,
            check_data=(IMAGES, labels),
            accuracy_drop=0.1,
            report=True,
            **options,
        )
        assert report.model_accuracy == 1.0 and report.accuracy >= 0.9
        assert report.quantization == name and report.artefact.bytes == path.stat().st_size
        assert (report.difference < 1e-4) == (name is None)
        sizes[name] = report.artefact.bytes
    assert sizes["float16"] < 0.6 * sizes[None]
    assert sizes["dynamic_int8"] < 0.4 * sizes[None] and sizes["int8"] < 0.4 * sizes[None]
    assert np.int8 not in tensor_types(tmp_path / "float16.tflite")
    assert {np.int8, np.float32} <= tensor_types(tmp_path / "dynamic_int8.tflite")


@pytest.mark.parametrize("inference_type", partly_slow(["int8"], ["float32", "uint8"]))
def test_full_int8_takes_and_gives_the_type_that_was_asked_for(model, tmp_path, inference_type):
    path = tmp_path / "model.tflite"
    data = tf.data.Dataset.from_tensor_slices((IMAGES, np.zeros(40))).batch(16)
    write(model, path, "int8", representative_data=data, inference_type=inference_type)
    interpreter = Interpreter(str(path))
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert given["dtype"] == made["dtype"] == np.dtype(inference_type).type
    if inference_type != "float32":
        assert np.float32 not in tensor_types(path)


@pytest.mark.parametrize("quantization", partly_slow([None], ["int8"]))
def test_the_same_weights_and_samples_give_the_same_bytes(model, tmp_path, quantization):
    options = {"representative_data": IMAGES} if quantization == "int8" else {}
    first, second = (
        write(model, tmp_path / f"{number}.tflite", quantization, **options) for number in range(2)
    )
    assert first.read_bytes() == second.read_bytes()


def test_two_named_inputs_are_calibrated_each_by_its_own_data(tmp_path):
    # Named against the order of the alphabet, in which the converter may list them.
    inputs = [keras.Input((8,), name="z"), keras.Input((4,), name="a")]
    x = keras.layers.Concatenate()([LowRankDense(6, rank=2)(one) for one in inputs])
    model = LowRankModel(inputs, LowRankDense(3, rank=1)(x))
    wide, narrow = 100 * rng.standard_normal((50, 8)), 0.01 * rng.standard_normal((50, 4))
    path = write(model, tmp_path / "a.tflite", "int8", representative_data=[wide, narrow])
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    assert runner.get_input_details().keys() == {"z", "a"}
    path = write(
        model,
        tmp_path / "b.tflite",
        "int8",
        representative_data=lambda: ([wide[:1], narrow[:1]] for _ in range(3)),
    )
    assert path.exists()


def spoil(monkeypatch, scale):
    """Exports hold kernels that are all multiplied by a number."""
    right = pipeline.deployed_kernels

    def wrong(model):
        kernels = right(model)
        for kernel in kernels.values():
            kernel.matrices[0].assign(scale * kernel.matrices[0])
        return kernels

    monkeypatch.setattr(pipeline, "deployed_kernels", wrong)


@pytest.mark.parametrize("quantization", partly_slow(["int8"], ["float16"]))
def test_a_file_that_differs_by_more_than_rounding_is_refused(
    model, tmp_path, monkeypatch, quantization
):
    options = {"representative_data": IMAGES} if quantization == "int8" else {}
    spoil(monkeypatch, 1.2)
    with pytest.raises(ValueError, match=r"must agree .*root mean square.*check_data"):
        write(model, tmp_path / "model.tflite", quantization, **options)
    assert not list(tmp_path.iterdir())


def test_accuracy_decides_where_there_are_data(model, labels, tmp_path, monkeypatch):
    spoil(monkeypatch, 1.02)  # outputs differ by more than float16 may, labels hardly do
    with pytest.raises(ValueError, match="must agree"):
        write(model, tmp_path / "model.tflite", "float16")
    options = {"check_data": (IMAGES, labels), "accuracy_drop": 0.1}
    path = write(model, tmp_path / "model.tflite", "float16", **options)
    before = path.read_bytes()
    spoil(monkeypatch, -1.0)
    with pytest.raises(ValueError, match=r"reach the accuracy of the model, 100.00%.*Received: "):
        write(model, path, "float16", overwrite=True, **options)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("targets", partly_slow(["one_hot"], ["column"]))
def test_targets_come_in_the_forms_that_keras_knows(model, labels, tmp_path, targets):
    wrong = np.where(np.arange(40) < 10, (labels + 1) % 10, labels)
    y = {"column": wrong[:, None], "one_hot": np.eye(10)[wrong]}[targets]
    report = model.export(
        tmp_path / "a.tflite", "litert", verbose=False, check_data=(IMAGES, y), report=True
    )
    assert report.accuracy == report.model_accuracy == 0.75


@pytest.mark.parametrize(
    "options, message",
    [
        ({"quantization": "int4"}, r"`quantization` must be one of .*'int8'.*Received"),
        ({"quantization": "int8"}, "with quantization='int8'.*without representative data"),
        ({"representative_data": IMAGES}, "only then. Received: quantization=None with"),
        ({"inference_type": "int8"}, "must be 'float32', except with quantization='int8'"),
        ({"quantization": "int8", "inference_type": "int4"}, "`inference_type` must be one of"),
        (
            {"quantization": "int8", "representative_data": IMAGES[:, :11]},
            r"\(samples, 12, 12, 1\)\. Received: \(40, 11, 12, 1\)$",
        ),
        (
            {"quantization": "int8", "representative_data": [IMAGES, IMAGES]},
            r"\(samples, 12, 12, 1\)\. Received: \(40, 12, 12, 1\), \(40, 12, 12, 1\)$",
        ),
        ({"quantization": "int8", "representative_data": IMAGES[:0]}, "at least one sample"),
        ({"check_data": IMAGES}, r"must be a pair \(x, y\)"),
        ({"check_data": (IMAGES, np.zeros(3))}, "3 targets for 40 samples"),
        (
            {"check_data": (IMAGES[:, 0, ..., 0], np.zeros(40))},
            r"`check_data` must hold arrays of the",
        ),
        ({"class_labels": ["a"]}, "`class_labels` must be a list of str, one for each column"),
        ({"class_labels": list("abcdefghij")}, "needs format='tf_saved_model'"),
        ({"preprocessing": np.sqrt}, "`preprocessing` must be a Keras layer"),
    ],
)
def test_wrong_arguments_are_one_line_and_leave_nothing(model, tmp_path, options, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        model.export(tmp_path / "model.tflite", "litert", verbose=False, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_quantization_is_for_litert(model, tmp_path):
    with pytest.raises(ValueError, match="`quantization` needs format='litert'"):
        model.export(tmp_path / "1", quantization="float16")
