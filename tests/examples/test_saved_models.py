"""The committed model answers as its card says."""

import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

FOLDER = pathlib.Path(__file__).parents[2] / "saved_models" / "digits"


@pytest.fixture(scope="module")
def test_split():
    datasets = pytest.importorskip("sklearn.datasets")
    selection = pytest.importorskip("sklearn.model_selection")
    digits = datasets.load_digits()
    images = (digits.images / 16.0).astype("float32")[..., None]
    _, test_images, _, test_labels = selection.train_test_split(
        images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )
    return test_images, test_labels


@pytest.fixture(scope="module")
def model():
    return tf.saved_model.load(str(FOLDER / "1"))


def serve(model, images):
    (logits,) = model.signatures["serving_default"](tf.constant(images)).values()
    return logits.numpy()


def test_accuracy_is_the_one_on_the_card(model, test_split):
    images, labels = test_split
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    stated = float(re.search(r"\| test accuracy \| ([\d.]+)% \|", card).group(1))
    accuracy = 100.0 * np.mean(np.argmax(serve(model, images), axis=1) == labels)
    # One image of 450 may fall to the other side by rounding on another machine.
    assert accuracy == pytest.approx(stated, abs=100.0 / len(labels) + 0.005)


def test_batch_size_is_free(model, test_split):
    images, _ = test_split
    whole = serve(model, images[:5])
    assert whole.shape == (5, 10)
    np.testing.assert_allclose(serve(model, images[:1]), whole[:1], rtol=1e-4, atol=1e-4)


def test_model_is_small_enough_to_commit():
    files = [file for file in (FOLDER / "1").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_000_000
