"""Model cards: their numbers are the model's and the file's, and their code loads the file."""

import json
import re

import keras
import numpy as np
import pytest

import keras_lowrank
from keras_lowrank import LowRankDense, LowRankModel, ModelCard
from keras_lowrank.export import export_model
from keras_lowrank.files.placing import size
from keras_lowrank.reporting.card import card_text

X = np.random.default_rng(0).normal(size=(12, 8)).astype("float32")
Y = np.arange(12) % 3


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,), name="features")
    hidden = LowRankDense(9, rank=2, name="hidden")(inputs)
    wide = LowRankDense(10, rank=6, name="wide")(hidden)  # more weights than its kernel
    outputs = keras.layers.Dense(3, activation="softmax")(wide)
    model = LowRankModel(inputs, outputs)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True)
    return model


def parsed(path):
    """The front matter and the rest of a card."""
    _, front, text = path.read_text(encoding="utf-8").split("---\n", 2)
    entries = (line.split(": ", 1) for line in front.splitlines())
    return {key: json.loads(value) for key, value in entries}, text


def cells(text):
    """The tables of a card: `{first cell: the others}`."""
    rows = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    return {first: rest for first, *rest in (row.split(" | ") for row in rows)}


def run(text, inputs):
    """What the code of a card computes, in the folder of the file."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"inputs": inputs}
    exec(code, names)
    return names["outputs"]


def test_the_numbers_of_a_saved_model_are_those_of_the_model(model, tmp_path, monkeypatch):
    metrics = model.evaluate(X, Y, verbose=0, return_dict=True)
    metadata = {"license": "apache-2.0", "datasets": ["größer: 1"], "model-index": [{"name": "a"}]}
    card = ModelCard("8 numbers", metrics, "python train.py --seed 1", metadata)
    model.save(tmp_path / "model.keras", card=card)
    front, text = parsed(tmp_path / "model.keras.md")
    assert front == {
        "library_name": "keras",
        "tags": ["keras_lowrank", "low-rank"],
        "metrics": ["accuracy"],
        **metadata,
    }
    shown, count = cells(text), model.compression()
    assert shown["Data"] == ["8 numbers"] and shown["Made with"] == ["`python train.py --seed 1`"]
    assert shown["accuracy"] == [f"{metrics['accuracy']:.4f}"]
    assert shown["loss"] == [f"{metrics['loss']:.4f}"]
    assert f"{(tmp_path / 'model.keras').stat().st_size:,} bytes" in shown["File"][0]
    assert shown["Weights at full rank"] == [f"{count.full:,}"]
    for name, numbers in (("of both factors", count.factored), ("deployed", count.deployed)):
        assert shown[f"Weights {name}"] == [f"{numbers:,} ({count.saved(numbers):.2%} saved)"]
    assert shown["hidden"] == ["8 x 9", "2", "34", f"{1 - 34 / 72:.2%}"]
    assert shown["wide"][:2] == ["9 x 10", "6"]
    assert {path for path in shown if path in model.ranks} == set(model.ranks)
    assert keras_lowrank.__version__ in shown["Versions"][0]
    assert keras.__version__ in shown["Versions"][0]
    monkeypatch.chdir(tmp_path)
    np.testing.assert_allclose(run(text, X), model.predict(X, verbose=0), rtol=1e-5)


@pytest.mark.parametrize(
    "format, suffix, measured", [("tf_saved_model", "", False), ("litert", ".tflite", True)]
)
def test_the_card_of_an_export_measures_and_loads_the_file(
    model, tmp_path, format, suffix, measured, monkeypatch
):
    path = tmp_path / "m" / f"1{suffix}"
    card = ModelCard(metrics={"accuracy": -1.0})  # the accuracy of the file takes its place
    report = model.export(
        path, format, check_data=(X, Y), report=measured, card=card, verbose=False
    )
    front, text = parsed(tmp_path / "m" / f"1{suffix}.md")
    shown, expected = cells(text), model.predict(X, verbose=0)
    assert front["metrics"] == ["accuracy"] and "license" not in front
    assert shown["accuracy"] == [f"{np.mean(expected.argmax(axis=-1) == Y):.4f}"]
    assert f"{format}, {size(path):,} bytes" in shown["File"][0]
    assert shown["Inputs"] == ["`features`, float32 (None, 8)"]
    assert ("## Beside full rank" in text) == measured and "Data" not in shown
    if measured:
        assert str(report._replace(path=path.name)) in text and str(tmp_path) not in text
    monkeypatch.chdir(path.parent if suffix else tmp_path)
    if suffix:
        pytest.importorskip("ai_edge_litert", reason="runs the file")
    (outputs,) = run(text, {"features": X}).values()
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-6)


def test_the_front_matter_is_yaml(tmp_path):
    yaml = pytest.importorskip("yaml", reason="reads it as Hugging Face does")
    metadata = {
        "license": "mit",
        "datasets": ["größer: 1 # none", "\U0001f600", 'a "quoted" \\ one\n---\n'],
        "model-index": [{"name": "yes", "results": [{"value": 0.97, "verified": False}]}],
    }
    text = card_text(
        ModelCard(metadata=metadata),
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]),
        tmp_path / "m.keras",
        held=1,
        kind="keras",
        loading="",
    )
    (front, _) = yaml.safe_load_all(re.sub(r"\n---\n.*", "\n---\n", text, count=1, flags=re.DOTALL))
    assert front == {"library_name": "keras", "tags": ["keras_lowrank", "low-rank"], **metadata}


def test_a_plain_model_has_a_card_without_ranks(tmp_path):
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    export_model(plain, tmp_path / "1", verbose=False, card=True)
    _, text = parsed(tmp_path / "1.md")
    assert cells(text)["Weights deployed"] == ["12 (0.00% saved)"] and "## Ranks" not in text


def test_an_older_card_is_replaced_only_with_its_file(model, tmp_path):
    path = tmp_path / "model.keras"
    (tmp_path / "model.keras.md").write_text("older")
    with pytest.raises(FileExistsError, match=r"model\.keras\.md"):
        model.save(path, overwrite=False, card=True)
    with pytest.raises(FileExistsError, match=r"README\.md"):
        (tmp_path / "README.md").write_text("older")
        model.export(tmp_path / "1", card=ModelCard(path=tmp_path / "README.md"))
    assert not path.exists() and not (tmp_path / "1").exists()
    model.save(path, card=True)
    assert "older" not in (tmp_path / "model.keras.md").read_text()
    assert (tmp_path / "README.md").read_text() == "older"


def test_what_is_no_card_is_refused(model, tmp_path):
    with pytest.raises(TypeError, match=r"bool or a `ModelCard`. Received: card='README.md'"):
        model.save(tmp_path / "model.keras", card="README.md")
    with pytest.raises(ValueError, match="path outside of the export. Received: card="):
        model.export(tmp_path / "1", card=ModelCard(path=tmp_path / "1/README.md"))
    assert not list(tmp_path.iterdir())
