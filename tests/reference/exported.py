"""Runs exported files, and lists their operations."""

import keras
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter


def path_for(tmp_path, format, name="model"):
    return tmp_path / (name if format == "tf_saved_model" else f"{name}.tflite")


def run_lite(interpreter, values):
    """The outputs of a LiteRT file, in order."""
    details = sorted(interpreter.get_input_details(), key=lambda d: d["name"])
    for detail, value in zip(details, values, strict=True):
        interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    for detail, value in zip(details, values):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


def predict_file(path, format, values):
    if format == "tf_saved_model":
        loaded = tf.saved_model.load(str(path))  # owns the variables
        return [t.numpy() for t in keras.tree.flatten(loaded.serve(*map(tf.constant, values)))]
    return run_lite(Interpreter(model_path=str(path)), values)


def operations(path):
    # Not public, but the only list of a file's operations.
    return {op["op_name"] for op in tf.lite.Interpreter(str(path))._get_ops_details()}
