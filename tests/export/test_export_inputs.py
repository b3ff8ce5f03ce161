"""Data that export takes: read as `predict` reads them, by name or by position."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowrank import LowRankDense, LowRankModel
from keras_lowrank.command_line import main
from keras_lowrank.export.samples import Samples
from keras_lowrank.export.served import Served

# An input that is small beside one that is large: taken for each other, nothing is right.
LARGE = np.random.default_rng(0).uniform(50, 100, (24, 3)).astype("float32")
SMALL = np.random.default_rng(1).standard_normal((24, 3)).astype("float32")

STRUCTURES = {
    "list": lambda z, a: [z, a],
    "dict": lambda z, a: {"z": z, "a": a},
    "sorted dict": lambda z, a: {"a": a, "z": z},
    "dict by other names": lambda z, a: {"p": z, "q": a},
    "nested": lambda z, a: [{"z": z}, a],
}


def model_of(structure):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((3,), name=name) for name in ("z", "a")]
    x = keras.layers.Concatenate()([inputs[0] / 100.0, inputs[1]])
    outputs = keras.layers.Dense(2)(LowRankDense(6, rank=3, activation="relu")(x))
    return LowRankModel(STRUCTURES[structure](*inputs), outputs)


@pytest.fixture(scope="module")
def models():
    return {name: model_of(name) for name in STRUCTURES}


def shown(model, data):
    """What the model says to the first rows of data as export reads them."""
    served = Served(model)
    return served(*Samples(data, served, "data").arguments(24))


DATA = {
    "dict": {"z": LARGE, "a": SMALL},
    "sorted": {"a": SMALL, "z": LARGE},
    "surplus at the end": {"a": SMALL, "z": LARGE, "zz": LARGE},
    "by other names": {"q": SMALL, "p": LARGE},
    "list": [LARGE, SMALL],
    "tuple": (LARGE, SMALL),
    "nested": [{"z": LARGE}, SMALL],
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_data_are_read_as_predict_reads_them(models, structure, data):
    model, data = models[structure], DATA[data]
    try:
        expected = model.predict(data, verbose=0)
    except ValueError:
        # A name that is missing is one for both; what `predict` refuses otherwise may be clear here
        if isinstance(data, list | tuple) or not {"z", "a"} <= set(data):
            with pytest.raises(ValueError, match="`data` must"):
                shown(model, data)
        return
    np.testing.assert_allclose(shown(model, data), expected, rtol=1e-5)


@pytest.mark.parametrize("structure", ["list", "dict", "sorted dict"])
def test_what_no_input_is_named_after_is_left(models, structure):
    model = models[structure]
    expected = shown(model, {"z": LARGE, "a": SMALL})
    # Between the two by name: `predict` itself takes it for the second input of a dictionary.
    found = shown(model, {"z": LARGE, "between": np.zeros((24, 7)), "a": SMALL})
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("structure", ["list", "dict", "sorted dict"])
def test_a_name_that_is_missing_is_an_error(models, structure):
    with pytest.raises(ValueError, match=r"`data` must hold an array for each.*Received.*'y'"):
        shown(models[structure], {"a": SMALL, "y": LARGE})


def test_data_sets_and_callables_give_dictionaries_too(models):
    model = models["list"]
    expected = shown(model, [LARGE, SMALL])[:8]
    named = {"a": SMALL, "z": LARGE}
    batches = tf.data.Dataset.from_tensor_slices((named, np.zeros(24))).batch(8)
    for data in (batches, batches.map(lambda x, y: x), lambda: [named]):
        np.testing.assert_allclose(shown(model, data)[:8], expected, rtol=1e-5)


def test_one_input_may_have_a_name_and_an_axis_more_or_less():
    inputs = keras.Input((1,), name="only")
    model = LowRankModel(inputs, LowRankDense(2, rank=1)(inputs))
    column = SMALL[:, :1]
    for data in ({"only": column}, [column], column[:, 0], {"more": SMALL, "only": column[:, 0]}):
        np.testing.assert_allclose(shown(model, data), model.predict(column, verbose=0), rtol=1e-5)


def relative_error(model, path):
    interpreter = tf.lite.Interpreter(str(path))  # held: the runner does not own it
    run = interpreter.get_signature_runner()
    expected = model.predict([LARGE, SMALL], verbose=0)
    rows = [run(z=LARGE[i : i + 1], a=SMALL[i : i + 1])["output_0"][0] for i in range(24)]
    return np.linalg.norm(rows - expected) / np.linalg.norm(expected)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_ranges_and_accuracies_are_those_of_the_right_inputs(models, tmp_path):
    model = models["list"]
    labels = model.predict([LARGE, SMALL], verbose=0).argmax(-1)
    named = {"a": SMALL, "z": LARGE}
    model.export(
        tmp_path / "a.tflite",
        "litert",
        verbose=False,
        quantization="int8",
        representative_data=named,
        check_data=(named, labels),
        accuracy_drop=0.1,
    )
    assert relative_error(model, tmp_path / "a.tflite") < 0.1
    # The same on the command line, of a file of arrays by name.
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "inputs.npz", **named)
    np.savez(tmp_path / "test.npz", **named, y=labels)
    command = ["export", tmp_path / "model.keras", tmp_path / "b.tflite", "--format=litert"]
    command += ["--quantization=int8", f"--representative_data={tmp_path / 'inputs.npz'}"]
    command += [
        f"--report_file={tmp_path / 'b.json'}",
        "--accuracy_drop=0.1",
        f"--check_data={tmp_path / 'test.npz'}",
    ]
    main([*map(str, command)])
    assert relative_error(model, tmp_path / "b.tflite") < 0.1
    assert json.loads((tmp_path / "b.json").read_text())["model_accuracy"] == 1.0
