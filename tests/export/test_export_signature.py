"""What an artefact is called with: names, shapes and batch size, as Keras has them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from keras_lowrank import LowRankDense, LowRankModel
from keras_lowrank.export import signature

rng = np.random.default_rng(0)

FORMATS = {"tf_saved_model": "1", "litert": "m.tflite", "onnx": "m.onnx"}
EVERY = pytest.mark.parametrize("format", FORMATS)


def joined(xs):
    return keras.ops.concatenate(keras.tree.flatten(xs), axis=-1)


class Many(LowRankModel):
    def __init__(self):
        super().__init__()
        self.low = LowRankDense(4, rank=2)

    def call(self, inputs):
        return self.low(joined(inputs))


class Plain(keras.Model):
    def call(self, inputs):
        return joined(inputs)


@pytest.fixture(scope="module")
def arrays():
    return [rng.standard_normal((3, width)).astype("float32") for width in range(1, 13)]


def names(path, format):
    if format == "tf_saved_model":
        served = tf.saved_model.load(str(path)).signatures["serving_default"]
        return set(served.structured_input_signature[1])
    if format == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
        return {entry.name for entry in session.get_inputs()}
    details = Interpreter(str(path)).get_signature_runner("serving_default").get_input_details()
    return set(details)


@EVERY
def test_unnamed_inputs_are_called_as_keras_calls_them_and_keep_their_order(
    tmp_path, arrays, format
):
    if format == "onnx":
        pytest.importorskip("tf2onnx")
    model, plain = Many(), Plain()
    model(arrays)
    plain(arrays)
    plain.export(tmp_path / "plain", verbose=False)
    path = tmp_path / FORMATS[format]
    model.export(path, format, verbose=False)
    assert names(path, format) == names(tmp_path / "plain", "tf_saved_model")
    assert names(path, format) >= {"args_0", "args_0_1", "args_0_11"}
    if format == "litert":
        named = {f"args_0_{i}" if i else "args_0": one for i, one in enumerate(arrays)}
        runner = Interpreter(str(path)).get_signature_runner("serving_default")
        (outputs,) = runner(**named).values()
        np.testing.assert_allclose(outputs, model(arrays), atol=1e-4)


@EVERY
def test_names_that_are_no_words_of_python_become_some(tmp_path, format):
    if format == "onnx":
        pytest.importorskip("tf2onnx")
    inputs = keras.Input((3,), name="my-in put.y:z")
    model = LowRankModel(inputs, LowRankDense(4, rank=2)(inputs))
    model.export(tmp_path / FORMATS[format], format, verbose=False)
    assert names(tmp_path / FORMATS[format], format) == {"my_in_put_y_z"}


@pytest.fixture(scope="module")
def two():
    inputs = {"z": keras.Input((3,), name="z"), "a": keras.Input((None,), name="a")}
    first = keras.ops.sum(inputs["a"], axis=-1, keepdims=True)
    return LowRankModel(inputs, LowRankDense(4, rank=2)(joined([inputs["z"], first])))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        tf.TensorSpec,
        lambda shape: keras.InputSpec(shape=shape, dtype="float32"),
        lambda shape: keras.KerasTensor(shape, "float32"),
    ],
    ids=["TensorSpec", "InputSpec", "KerasTensor"],
)
def test_a_signature_is_what_keras_takes_for_one(two, tmp_path, spec, wrapped):
    given = {"z": spec((None, 3)), "a": spec((None, 5))}
    path = tmp_path / "m.tflite"
    two.export(path, "litert", verbose=False, input_signature=[given] if wrapped else given)
    details = Interpreter(str(path)).get_input_details()
    assert sorted(detail["shape_signature"].tolist() for detail in details) == [[-1, 3], [-1, 5]]


@EVERY
def test_a_batch_size_is_fixed_in_the_file(tmp_path, format):
    if format == "onnx":
        pytest.importorskip("tf2onnx")
    inputs = keras.Input((3,), name="x")
    model = LowRankModel(inputs, LowRankDense(4, rank=2)(inputs))
    path = tmp_path / FORMATS[format]
    model.export(path, format, verbose=False, batch_size=1)
    if format == "tf_saved_model":
        served = tf.saved_model.load(str(path)).signatures["serving_default"]
        shape = served.structured_input_signature[1]["x"].shape.as_list()
    elif format == "onnx":
        (entry,) = pytest.importorskip("onnxruntime").InferenceSession(str(path)).get_inputs()
        shape = entry.shape
    else:
        (detail,) = Interpreter(str(path)).get_input_details()
        shape = detail["shape_signature"].tolist()
    assert shape == [1, 3]


def test_shapes_of_inputs_are_told_in_order_or_by_name():
    specs = [{"z": tf.TensorSpec((None, None), name="z"), "a": tf.TensorSpec((None,), name="a")}]

    def shapes(*given):
        return [
            tuple(spec.shape)
            for spec in keras.tree.flatten(signature.with_shapes(specs, list(given)))
        ]

    assert [spec.name for spec in keras.tree.flatten(specs)] == ["a", "z"]
    assert shapes((None, ()), (None, (4,))) == [(None,), (None, 4)]
    assert shapes(("z", (7, 2))) == [(None,), (None, 7, 2)]
    for wrong in ([("b", (1,))], [(None, (1,))] * 3):
        with pytest.raises(ValueError, match="those of the inputs a, z.*Received: "):
            shapes(*wrong)
