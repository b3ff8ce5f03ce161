"""Runs exported files, and lists their operations."""

import importlib

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


def predict_by_name(path, format, signature, inputs):
    """The outputs of a file with a signature of one argument, which may be a dict of inputs."""
    if format == "tf_saved_model":
        loaded = tf.saved_model.load(str(path))  # owns the variables
        outputs = loaded.serve(keras.tree.map_structure(tf.constant, inputs))
        return [t.numpy() for t in keras.tree.flatten(outputs)]
    names = [spec.name for spec in keras.tree.flatten(signature)]
    named = dict(zip(names, keras.tree.flatten(inputs), strict=True))
    if format == "litert":
        outputs = Interpreter(model_path=str(path)).get_signature_runner()(**named)
        return [outputs[name] for name in sorted(outputs)]
    session = importlib.import_module("onnxruntime").InferenceSession(str(path))
    return session.run(sorted(one.name for one in session.get_outputs()), named)


def operations(path):
    # Not public, but the only list of a file's operations.
    return {op["op_name"] for op in tf.lite.Interpreter(str(path))._get_ops_details()}
