"""LiteRT (TensorFlow Lite): one file, in float or quantised, as phones and small devices run it.

The same weights give the same bytes: the converter orders and names what it writes by the graph
alone, and for `"int8"` by the samples, in their order.
"""

import importlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.export import saved_model
from keras_lowrank.export.served import input_names, position

SUFFIX = ".tflite"
QUANTIZATIONS = (None, "float16", "dynamic_int8", "int8")
INFERENCE_TYPES = ("float32", "int8", "uint8")


def write(served, kernels, path, quantization=None, samples=None, inference_type="float32"):
    """Writes what is served, with `kernels` in place of the factors, to the file `path`.

    Args:
        served: `Served`.
        kernels: `{factors: Product}`.
        path: `pathlib.Path`.
        quantization: one of `QUANTIZATIONS`.
        samples: `Samples`, what the ranges of the activations are taken from, for `"int8"`.
        inference_type: one of `INFERENCE_TYPES`, the type of inputs and outputs for `"int8"`.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        saved_model.write(served, kernels, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if quantization is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantization == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantization == "int8":
            names = input_names(served, saved_model.signature_names(folder))
            converter.representative_dataset = lambda: samples.one_by_one(names)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            # Not public. A scale and a zero point for each column of V^T are more bytes than the
            # rank has rows; one for the whole took 21% off LeNet5 and 0.04 points of accuracy.
            converter._experimental_disable_per_channel_quantization_for_dense_layers = True
            converter.inference_input_type = tf.as_dtype(inference_type)
            converter.inference_output_type = tf.as_dtype(inference_type)
        path.write_bytes(_convert(converter, quantization))


def _convert(converter, quantization):
    try:
        return converter.convert()
    except Exception as error:  # the converter has many, some with pages of MLIR in them
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            "LiteRT must have a builtin operation for all that the model computes with "
            f"quantization={quantization!r}: recurrent layers need `unroll=True`, and half "
            f"precision is for training (load the weights into a model without a dtype policy). "
            f"Received: {reason[:300]}"
        ) from error


def load(served, path):
    """A callable: the arguments in, the flat list of outputs as arrays out, in float."""
    session = _interpreter()(model_path=str(path))  # held: the runner does not own it
    run_signature = session.get_signature_runner("serving_default")
    details = run_signature.get_input_details()
    made = run_signature.get_output_details()
    names = input_names(served, details)

    def run(*arguments):
        given = zip(names, keras.tree.flatten(arguments), strict=True)
        outputs = run_signature(
            **{key: _quantized(np.asarray(x), details[key]) for key, x in given}
        )
        assert session is not None
        return [_dequantized(outputs[key], made[key]) for key in sorted(outputs, key=position)]

    return run


def _interpreter():
    try:
        return importlib.import_module("ai_edge_litert.interpreter").Interpreter
    except ImportError:  # an optional package; TensorFlow still ships the older one
        return tf.lite.Interpreter


def _quantized(values, detail):
    dtype = detail["dtype"]
    if dtype not in (np.int8, np.uint8) or values.dtype == dtype:
        return values
    scale, zero = detail["quantization"]
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(dtype)


def _dequantized(values, detail):
    scale, zero = detail["quantization"]
    return (values.astype("float32") - zero) * np.float32(scale) if scale else values


def check_arguments(quantization, samples, inference_type):
    """Raises ValueError where the arguments on quantisation do not fit together."""
    if quantization not in QUANTIZATIONS:
        raise ValueError(
            f"`quantization` must be one of {QUANTIZATIONS}. "
            f"Received: quantization={quantization!r}"
        )
    if inference_type not in INFERENCE_TYPES:
        raise ValueError(
            f"`inference_type` must be one of {INFERENCE_TYPES}. "
            f"Received: inference_type={inference_type!r}"
        )
    if (quantization == "int8") != (samples is not None):
        raise ValueError(
            "`representative_data`, some hundred typical inputs, goes with quantization='int8', "
            f"and with that alone. Received: quantization={quantization!r} "
            f"{'without' if samples is None else 'with'} representative data"
        )
    if inference_type != "float32" and quantization != "int8":
        raise ValueError(
            "`inference_type` other than 'float32' goes with quantization='int8' alone. "
            f"Received: quantization={quantization!r}, inference_type={inference_type!r}"
        )
