"""Artefacts in a process of their own that has no keras_lowrank, or no TensorFlow either."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import LowRankConv2D, LowRankDense, LowRankModel

rng = np.random.default_rng(0)
LABELS = ["cat", "dog", "owl"]

# Imports what is named and nothing of Keras, which the artefact must not need.
ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ImportError("refused: " + name)

sys.meta_path.insert(0, Refuse())
import numpy as np
values = np.load({data!r})
{body}
np.savez({out!r}, **{{k: v.astype("S") if v.dtype == object else v for k, v in outputs.items()}})
assert not set({refused}) & {{name.split(".")[0] for name in sys.modules}}
"""
SERVE = """
import tensorflow as tf
loaded = tf.saved_model.load({path!r})
serve = loaded.signatures["serving_default"]
outputs = {{k: v.numpy() for k, v in serve(**{{{name!r}: tf.constant(values)}}).items()}}
"""
INTERPRET = """
from ai_edge_litert.interpreter import Interpreter
session = Interpreter({path!r})
outputs = session.get_signature_runner("serving_default")(**{{{name!r}: values}})
"""


def run_alone(tmp_path, body, values, refused, **fields):
    np.save(tmp_path / "in.npy", values)
    out = str(tmp_path / "out.npz")
    script = ALONE.format(
        refused=refused, data=str(tmp_path / "in.npy"), out=out, body=body.format(**fields)
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(out))


def classifier(shape=(8, 8, 1)):
    inputs = keras.Input(shape, name="pixels")
    x = LowRankConv2D(6, 3, rank=2, activation="relu")(inputs)
    x = LowRankDense(20, rank=3)(keras.layers.Flatten()(x))
    return LowRankModel(inputs, keras.layers.Dense(3)(x))


def test_saved_model_serves_bytes_to_labels_without_the_package(tmp_path):
    model = classifier()
    scale = keras.Sequential(
        [keras.Input((8, 8, 1), dtype="uint8", name="image"), keras.layers.Rescaling(1 / 255)]
    )
    path = tmp_path / "digits" / "1"
    model.export(path, verbose=False, preprocessing=scale, class_labels=LABELS)
    images = rng.integers(0, 256, (5, 8, 8, 1)).astype("uint8")
    outputs = run_alone(tmp_path, SERVE, images, ["keras_lowrank"], path=str(path), name="image")
    scores = model.predict(images / 255.0, verbose=0)
    assert outputs.keys() == {"scores", "label"}
    np.testing.assert_allclose(outputs["scores"], scores, atol=1e-4)
    assert [label.decode() for label in outputs["label"]] == [LABELS[i] for i in scores.argmax(-1)]


def test_litert_file_needs_its_interpreter_and_numpy_alone(tmp_path):
    model = classifier()
    path = tmp_path / "model.tflite"
    model.export(path, "litert", verbose=False)
    images = rng.standard_normal((5, 8, 8, 1)).astype("float32")
    refused = ["keras_lowrank", "keras", "tensorflow"]
    outputs = run_alone(tmp_path, INTERPRET, images, refused, path=str(path), name="pixels")
    np.testing.assert_allclose(outputs["output_0"], model.predict(images, verbose=0), atol=1e-4)


def test_preprocessing_keeps_its_state_and_its_inference(tmp_path):
    words = tf.data.Dataset.from_tensor_slices(["b", "a", "a"])
    lookup = keras.layers.StringLookup(output_mode="one_hot")
    lookup.adapt(words.batch(3))
    before = keras.Sequential([keras.Input((1,), dtype="string", name="word"), lookup])
    inputs = keras.Input((3,))
    model = LowRankModel(inputs, LowRankDense(4, rank=2)(inputs))
    model.export(tmp_path / "1", verbose=False, preprocessing=before)
    served = tf.saved_model.load(str(tmp_path / "1"))
    values = tf.constant([["a"], ["b"], ["unknown"]])
    np.testing.assert_allclose(served.serve(values), model(before(values)), atol=1e-5)


def test_a_layer_before_the_model_takes_what_the_model_takes(tmp_path):
    model = classifier()
    normalize = keras.layers.Normalization(axis=None, mean=3.0, variance=4.0)
    model.export(tmp_path / "m.tflite", "litert", verbose=False, preprocessing=normalize)
    model.export(
        tmp_path / "1",
        verbose=False,
        preprocessing=keras.layers.RandomFlip(),  # in inference, it does nothing
    )
    images = rng.standard_normal((2, 8, 8, 1)).astype("float32")
    served = tf.saved_model.load(str(tmp_path / "1"))
    np.testing.assert_allclose(served.serve(images), model(images), atol=1e-4)


def test_labels_that_do_not_fit_are_refused(tmp_path):
    for labels in (["a", "b"], [1, 2, 3]):
        with pytest.raises(ValueError, match=r"one for each column.*\(None, 3\)"):
            classifier().export(tmp_path / "1", class_labels=labels)
    assert not list(tmp_path.iterdir())


def test_exported_twice_a_saved_model_holds_the_same_arrays_and_graph(tmp_path):
    model = classifier()
    found = []
    for name in "ab":
        model.export(tmp_path / name, verbose=False)
        reader = tf.train.load_checkpoint(str(tmp_path / name / "variables" / "variables"))
        arrays = [reader.get_tensor(key) for key in reader.get_variable_to_shape_map()]
        arrays = sorted(a.tobytes() for a in arrays if isinstance(a, np.ndarray))
        served = tf.saved_model.load(str(tmp_path / name))
        graph = served.signatures["serving_default"].graph.as_graph_def()
        operations = [node.op for function in graph.library.function for node in function.node_def]
        found.append((arrays, operations, served.serve(np.ones((2, 8, 8, 1), "float32")).numpy()))
    (arrays, operations, outputs), second = found
    assert arrays == second[0] and len(arrays) >= 6
    assert operations == second[1] and "MatMul" in operations
    assert outputs.tobytes() == second[2].tobytes()
