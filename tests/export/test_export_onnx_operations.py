"""ONNX: operations that tf2onnx does not know, constants, and errors that name what is left."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import LowRankDense, LowRankModel

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
onnxruntime = pytest.importorskip("onnxruntime")

layers, ops = keras.layers, keras.ops
rng = np.random.default_rng(0)


class Sinusoids(layers.Layer):
    """Adds a table that is no weight, made when the layer is."""

    def __init__(self):
        super().__init__()
        self.table = tf.constant(rng.standard_normal((1, 8)), "float32")

    def call(self, inputs):
        return inputs + self.table

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


class Weighted(layers.Layer):
    """Captures a constant inside a loop."""

    def call(self, inputs):
        weights = ops.convert_to_tensor(np.arange(8, dtype="float32"))
        return tf.map_fn(lambda row: row * weights, inputs)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


def model_of(layer, shape):
    inputs = keras.Input(shape, name="x")
    return LowRankModel(inputs, LowRankDense(4, rank=2)(layer(inputs)))


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Normalization(mean=np.arange(8.0), variance=np.ones(8)), (8,)),
        (layers.Rescaling(np.arange(8.0), offset=np.ones(8)), (8,)),
        (Sinusoids(), (8,)),
        (Weighted(), (8,)),
        (layers.Activation("gelu"), (8,)),
        (layers.Activation("celu"), (8,)),
        (ops.expm1, (8,)),
        (lambda x: ops.log1p(ops.abs(x)), (8,)),
        (layers.Conv1D(4, 3, groups=2), (8, 4)),
        (layers.Conv2D(4, 3, groups=2, activation="gelu"), (8, 8, 4)),
        (layers.Conv3D(4, 3, groups=2), (4, 4, 4, 4)),
    ],
    ids=lambda x: getattr(x, "name", None) or getattr(x, "__name__", None),
)
def test_what_tf2onnx_does_not_know_is_written_in_what_onnx_has(tmp_path, layer, shape):
    model, path = model_of(layer, shape), tmp_path / "m.onnx"
    model.export(path, "onnx", verbose=False)
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path))
    assert [entry.name for entry in session.get_inputs()] == ["x"]
    for scale in (1e-3, 1.0, 5.0):
        x = scale * rng.standard_normal((3, *shape)).astype("float32")
        (outputs,) = session.run(None, {"x": x})
        np.testing.assert_allclose(outputs, model(x), atol=1e-5, rtol=1e-4)


def test_files_with_constants_are_the_same_twice(tmp_path):
    model = model_of(layers.Normalization(mean=np.arange(8.0), variance=np.ones(8)), (8,))
    for name in ("a.onnx", "b.onnx"):
        model.export(tmp_path / name, "onnx", verbose=False)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    "layer, shape, names",
    [
        (lambda x: ops.erfinv(0.1 * ops.tanh(x)), (8,), "Erfinv"),
        (lambda x: ops.fft((x, x))[0], (8,), "FFT"),
        (lambda x: ops.inv(x + 10.0 * ops.eye(3)), (3, 3), "MatrixInverse"),
    ],
)
def test_what_onnx_does_not_have_is_named_in_our_words(tmp_path, layer, shape, names, capfd):
    with pytest.raises(ValueError, match=rf"ONNX must have.*other operations.*{names}") as caught:
        model_of(layer, shape).export(tmp_path / "m.onnx", "onnx", verbose=False)
    assert len(str(caught.value).splitlines()) == 1 and not list(tmp_path.iterdir())
    assert "tf2onnx" not in capfd.readouterr().err


def test_what_onnxruntime_refuses_is_our_error(tmp_path):
    model = model_of(layers.Resizing(5, 5, interpolation="bicubic"), (8, 8, 4))
    with pytest.raises(ValueError, match="onnxruntime must be able to run the file.*`opset_vers"):
        model.export(tmp_path / "m.onnx", "onnx", verbose=False)
    assert not list(tmp_path.iterdir())


def test_the_version_of_the_operations_is_chosen(tmp_path):
    model = model_of(layers.Activation("relu"), (8,))
    model.export(tmp_path / "m.onnx", "onnx", verbose=False, opset_version=13)
    (version,) = onnx.load(tmp_path / "m.onnx").opset_import[:1]
    assert version.version == 13
    with pytest.raises(ValueError, match="`opset_version` needs format='onnx'"):
        model.export(tmp_path / "m.tflite", "litert", opset_version=13)
