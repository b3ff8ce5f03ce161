"""LiteRT: Keras's own options, and errors that name the operation and the way round it."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from keras_lowrank import LowRankDense, LowRankModel
from keras_lowrank.export import parity

layers, ops = keras.layers, keras.ops
rng = np.random.default_rng(0)


class Fourier(layers.Layer):
    def call(self, inputs):
        return tf.math.real(tf.signal.fft(tf.cast(inputs, tf.complex64)))


def model_of(layer, shape=(8,), dtype=None):
    inputs = keras.Input(shape, dtype=dtype, name="x")
    return LowRankModel(inputs, LowRankDense(4, rank=2, name="low")(layer(inputs)))


def decoder(inputs):
    x = layers.Embedding(20, 8)(inputs)
    return layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)


@pytest.fixture(scope="module")
def attention():
    return model_of(decoder, (None,), "int32")


@pytest.fixture(scope="module")
def small():
    return model_of(layers.Activation("gelu"))


def refusal(model, path):
    with pytest.raises(ValueError, match="LiteRT must") as caught:
        model.export(path, "litert", verbose=False)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(path.parent.iterdir())
    return str(caught.value)


@pytest.mark.parametrize(
    "layer, shape, operation, remedy",
    [
        (layers.GRU(4), (5, 4), "TensorListReserve", "`unroll=True`"),
        (lambda x: ops.erfinv(ops.tanh(x)), (8,), "Erfinv", "other operations.*`keras_lowrank.to_"),
        (Fourier(), (8,), "", "few operations for complex numbers"),
        (lambda x: ops.fft((x, x))[0], (8,), "FFT", "few for complex numbers"),
    ],
    ids=["loop", "operation", "complex_run", "complex"],
)
def test_an_operation_that_litert_has_not_is_named(tmp_path, layer, shape, operation, remedy):
    text = refusal(model_of(layer, shape), tmp_path / "m.tflite")
    assert re.search(remedy, text) and operation in text.partition("Received: ")[2]
    for other in {"unroll", "complex", "precision"} - set(re.findall(r"\w+", remedy)):
        assert other not in text


@pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
def test_a_precision_that_litert_has_not_is_named(tmp_path, policy):
    inputs = keras.Input((8,))
    model = LowRankModel(inputs, LowRankDense(4, rank=2, dtype=policy)(inputs))
    text = refusal(model, tmp_path / "m.tflite")
    assert "without a dtype policy. Received: MatMul" in text and "unroll" not in text


def test_a_free_length_is_named_and_its_remedy_works(attention, tmp_path):
    text = refusal(attention, tmp_path / "m.tflite")
    assert "--input_shape" in text and "unroll" not in text and "Received: StridedSlice" in text
    remedy = re.search(r"`input_signature=(.*?)`", text)[1]
    assert remedy == "[tf.TensorSpec((None, 8), 'int32', 'x')]"
    signature = eval(remedy, {"tf": tf})
    attention.export(tmp_path / "m.tflite", "litert", verbose=False, input_signature=signature)
    (detail,) = Interpreter(str(tmp_path / "m.tflite")).get_input_details()
    assert detail["shape_signature"].tolist() == [-1, 8]


def test_a_free_batch_size_is_named_and_its_remedy_works(tmp_path):
    model = model_of(lambda x: ops.roll(x, 1, axis=1))
    text = refusal(model, tmp_path / "m.tflite")
    assert "pass `batch_size=1`. Received: Roll" in text
    model.export(tmp_path / "m.tflite", "litert", verbose=False, batch_size=1)


def rounding_of(monkeypatch, model, path, **options):
    """How an export judges what it has written."""
    found = []
    check = parity.check

    def checked(served, run, expected, rounding, *rest):
        found.append(rounding)
        return check(served, run, expected, rounding, *rest)

    monkeypatch.setattr(parity, "check", checked)
    model.export(path, "litert", verbose=False, overwrite=True, **options)
    return found[0]


@pytest.mark.parametrize(
    "options, quantization",
    [
        ({"optimizations": [tf.lite.Optimize.DEFAULT]}, "dynamic_int8"),
        (
            {
                "optimizations": [tf.lite.Optimize.DEFAULT],
                "target_spec": {"supported_types": [tf.float16]},
            },
            "float16",
        ),
        (
            {
                "optimizations": [tf.lite.Optimize.DEFAULT],
                "representative_dataset": lambda: [[np.ones((1, 8), "float32")]] * 8,
            },
            "int8",
        ),
        ({"target_spec": {"experimental_select_user_tf_ops": []}}, None),
    ],
)
def test_options_of_keras_are_taken_and_judged_as_ours(
    small, tmp_path, monkeypatch, options, quantization
):
    assert rounding_of(monkeypatch, small, tmp_path / "m.tflite", **options) == quantization


def test_options_that_do_not_fit_are_refused(small, tmp_path):
    default = [tf.lite.Optimize.DEFAULT]
    for options, message in [
        ({"target_spec": {"ops": []}}, "attributes of `tf.lite.TargetSpec`. Received: ops"),
        ({"optimizations": default, "quantization": "float16"}, "pass only one of them"),
        ({"representative_dataset": list, "representative_data": np.ones((1, 8))}, "pass only one"),
    ]:
        with pytest.raises(ValueError, match=message):
            small.export(tmp_path / "m.tflite", "litert", verbose=False, **options)
    for format, name in (("tf_saved_model", "1"), ("onnx", "m.onnx")):
        with pytest.raises(ValueError, match="`optimizations` needs format='litert'"):
            small.export(tmp_path / name, format, optimizations=default)
    assert not list(tmp_path.iterdir())
