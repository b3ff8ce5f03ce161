"""LiteRT (TensorFlow Lite): one file, in float or quantised, for phones and small devices.

The same weights give the same bytes: the converter's order and names depend only on the graph and,
for `"int8"`, on the samples in their order.
"""

import importlib
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.export import litert_errors, saved_model
from keras_lowrank.export.samples import Samples
from keras_lowrank.export.served import Served, position

SUFFIX = ".tflite"
LOADING = """\
from ai_edge_litert.interpreter import Interpreter

run = Interpreter({name!r}).get_signature_runner("serving_default")
outputs = run(**inputs)  # arrays by name
"""
QUANTIZATIONS = (None, "float16", "dynamic_int8", "int8")
INFERENCE_TYPES = ("float32", "int8", "uint8")


trace = saved_model.trace


def write(
    served: Served,
    function: tf.types.experimental.GenericFunction,
    path: pathlib.Path,
    quantization: str | None = None,
    samples: Samples | None = None,
    inference_type: str = "float32",
    optimizations: list | None = None,
    target_spec: Any = None,
) -> None:
    """Writes a traced function to a file.

    Args:
        served: `Served`.
        function: `tf.function`, as `trace` returns it.
        path: `pathlib.Path` of the file.
        quantization: one of `QUANTIZATIONS`.
        samples: `Samples` that set the ranges of the activations for `"int8"`, or None.
        inference_type: one of `INFERENCE_TYPES`, the type of inputs and outputs for `"int8"`.
        optimizations: as in `LowRankModel.export`.
        target_spec: as in `LowRankModel.export`.

    Raises:
        ValueError: LiteRT lacks an operation, or `target_spec` has an unknown attribute.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        saved_model.write(served, function, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if quantization is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantization == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if samples is not None:
            converter.representative_dataset = lambda: samples.one_by_one(served.names)
        if quantization == "int8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            # Not public. One scale and zero point for each column of V^T would take more bytes
            # than the few rows of V^T themselves.
            converter._experimental_disable_per_channel_quantization_for_dense_layers = True
            converter.inference_input_type = tf.as_dtype(inference_type)
            converter.inference_output_type = tf.as_dtype(inference_type)
        if optimizations is not None:
            converter.optimizations = optimizations
        _set_target(converter, target_spec)
        try:
            content = converter.convert()
        except Exception as error:  # of many classes, some with pages of MLIR
            raise ValueError(litert_errors.explained(error, served, function)) from error
        path.write_bytes(content)


def _set_target(converter: tf.lite.TFLiteConverter, target_spec: Any) -> None:
    if not isinstance(target_spec, dict):
        converter.target_spec = target_spec or converter.target_spec
        return
    for name, value in target_spec.items():
        if not hasattr(converter.target_spec, name):
            raise ValueError(
                "`target_spec` must hold attributes of `tf.lite.TargetSpec`. "
                f"Received: {name}={value!r}"
            )
        setattr(converter.target_spec, name, value)


def rounding(
    quantization: str | None,
    samples: Samples | None,
    optimizations: list | None = None,
    target_spec: Any = None,
) -> str | None:
    """Returns the quantization, one of `QUANTIZATIONS`, that these arguments or Keras's ask for."""
    if quantization is not None or not optimizations:
        return quantization
    if samples is not None:
        return "int8"
    target = target_spec or {}
    given = target if isinstance(target, dict) else vars(target)
    return "float16" if tf.float16 in given.get("supported_types", ()) else "dynamic_int8"


def load(
    served: Served, function: tf.types.experimental.GenericFunction, path: pathlib.Path
) -> Callable[..., list[np.ndarray]]:
    """Loads a file that `write` wrote.

    Returns:
        Callable from the arguments to the flat list of outputs, arrays in float.

    Raises:
        ValueError: the interpreter cannot run the file.
    """
    session = _interpreter()(model_path=str(path))
    try:
        run_signature = session.get_signature_runner("serving_default")
    except RuntimeError as error:
        raise ValueError(litert_errors.explained_run(error, function)) from error
    details = run_signature.get_input_details()
    made = run_signature.get_output_details()

    def run(*arguments: Any) -> list[np.ndarray]:
        given = zip(served.names, keras.tree.flatten(arguments), strict=True)
        try:
            outputs = run_signature(
                **{key: _quantized(np.asarray(x), details[key]) for key, x in given}
            )
        except RuntimeError as error:
            raise ValueError(litert_errors.explained_run(error, function)) from error
        return [_dequantized(outputs[key], made[key]) for key in sorted(outputs, key=position)]

    vars(run)["session"] = session  # the runner does not own it
    return run


def _interpreter() -> Any:
    try:
        return importlib.import_module("ai_edge_litert.interpreter").Interpreter
    except ImportError:  # an optional package; TensorFlow ships an older interpreter
        return tf.lite.Interpreter


def _quantized(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    dtype = detail["dtype"]
    if dtype not in (np.int8, np.uint8) or values.dtype == dtype:
        return values
    scale, zero = detail["quantization"]
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(dtype)


def _dequantized(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero = detail["quantization"]
    return (values.astype("float32") - zero) * np.float32(scale) if scale else values


def check_arguments(
    quantization: str | None,
    samples: Samples | None,
    inference_type: str,
    optimizations: list | None = None,
    target_spec: Any = None,
) -> None:
    """Checks that the arguments for quantisation fit together.

    Raises:
        ValueError: they do not.
    """
    if quantization is not None and optimizations:
        raise ValueError(
            "`optimizations` is Keras's form of `quantization`: pass only one of them. "
            f"Received: quantization={quantization!r}, optimizations={optimizations!r}"
        )
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
    by_ranges = rounding(quantization, samples, optimizations, target_spec) == "int8"
    if by_ranges != (samples is not None):
        raise ValueError(
            "`representative_data`, about a hundred typical inputs, must be passed with "
            f"quantization='int8', and only then. Received: quantization={quantization!r} "
            f"{'without' if samples is None else 'with'} representative data"
        )
    if inference_type != "float32" and quantization != "int8":
        raise ValueError(
            "`inference_type` must be 'float32', except with quantization='int8'. "
            f"Received: quantization={quantization!r}, inference_type={inference_type!r}"
        )
