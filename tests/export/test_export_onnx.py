"""ONNX files: onnxruntime computes what the model computes."""

import keras
import numpy as np
import pytest

from keras_lowrank import LowRankConv2D, LowRankDense, LowRankModel
from keras_lowrank.export import onnx as onnx_format

rng = np.random.default_rng(0)


def convolutional():
    inputs = keras.Input((8, 8, 2), name="image")
    x = LowRankConv2D(6, 3, rank=2, activation="relu", padding="same")(inputs)
    x = keras.layers.BatchNormalization()(keras.layers.MaxPooling2D()(x))
    x = LowRankDense(32, rank=2)(keras.layers.Flatten()(x))
    return LowRankModel(inputs, keras.layers.Dense(3)(x))


def session_of(path):
    return pytest.importorskip("onnxruntime").InferenceSession(str(path))


def test_file_runs_at_any_batch_and_is_the_same_twice(tmp_path):
    pytest.importorskip("tf2onnx")
    model = convolutional()
    labels = np.zeros(5, "int32")
    images = rng.standard_normal((5, 8, 8, 2)).astype("float32")
    report = model.export(
        tmp_path / "a.onnx", "onnx", verbose=False, report=True, check_data=(images, labels)
    )
    assert report.accuracy == report.model_accuracy and report.difference < 1e-4
    model.export(tmp_path / "b.onnx", "onnx", verbose=False)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    session = session_of(tmp_path / "a.onnx")
    assert [entry.name for entry in session.get_inputs()] == ["image"]
    assert [entry.name for entry in session.get_outputs()] == ["output_0"]
    for batch in (1, 4):
        (outputs,) = session.run(None, {"image": images[:batch]})
        np.testing.assert_allclose(outputs, model.predict(images, verbose=0)[:batch], atol=1e-4)


def test_file_has_the_folded_factors_and_no_kernel(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("tf2onnx")
    inputs = keras.Input((40,))
    model = LowRankModel(inputs, LowRankDense(30, rank=3, use_bias=False)(inputs))
    model.export(tmp_path / "model.onnx", "onnx", verbose=False)
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    shapes = [tuple(constant.dims) for constant in graph.initializer]
    assert sorted(sorted(shape) for shape in shapes) == [[3, 30], [3, 40]]


def test_inputs_and_outputs_keep_their_names_and_order(tmp_path):
    pytest.importorskip("tf2onnx")
    inputs = {"b": keras.Input((4,), name="b"), "a": keras.Input((8,), name="a")}
    x = LowRankDense(6, rank=2)(inputs["a"])
    model = LowRankModel(inputs, {"wide": x, "narrow": LowRankDense(5, rank=2)(inputs["b"])})
    model.export(tmp_path / "model.onnx", "onnx", verbose=False)
    values = {n: rng.standard_normal((3, k)).astype("float32") for n, k in (("a", 8), ("b", 4))}
    session = session_of(tmp_path / "model.onnx")
    names = [entry.name for entry in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, values)))
    expected = model.predict(values, verbose=0)
    assert outputs.keys() == expected.keys()
    for name, want in expected.items():
        np.testing.assert_allclose(outputs[name], want, atol=1e-4)


def test_a_missing_package_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(onnx_format.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'keras_lowrank\[onnx\]'.*tf2onnx"):
        convolutional().export(tmp_path / "model.onnx", "onnx")
    assert not list(tmp_path.iterdir())
