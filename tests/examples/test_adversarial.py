"""The example of attacks: what an attack is, and what a run reports."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from example_programs import imported

rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def example():
    with imported("adversarial") as module:
        yield module


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((4, 4, 1))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))


def test_an_attack_moves_each_pixel_and_raises_the_loss(example, model):
    images = tf.constant(rng.uniform(0.3, 0.7, (5, 4, 4, 1)), tf.float32)
    labels = tf.constant([0, 1, 2, 0, 1])
    moved = example.attacked(model, images, labels, 0.1)
    np.testing.assert_allclose(np.abs(moved - images), 0.1, rtol=1e-4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    assert np.all(loss(labels, model(moved)) > loss(labels, model(images)))
    far = example.attacked(model, images, labels, 5.0).numpy()
    assert far.min() == 0.0 and far.max() == 1.0


def test_accuracies_fall_with_epsilon(example, model):
    images = tf.constant(rng.uniform(0.3, 0.7, (20, 4, 4, 1)), tf.float32)
    labels = tf.argmax(model(images), axis=-1)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    found = example.accuracies(model, batches, [0.0, 0.01, 1.0])
    assert found[0] == 1.0 and found[0] >= found[1] > found[2]


@pytest.mark.slow
def test_a_run_reports_all_methods(example, tmp_path, monkeypatch, capsys):
    images = rng.integers(0, 255, (8, 28, 28, 1), "uint8")
    split = example.image_data.Split(images, np.arange(8) % 10)
    monkeypatch.setattr(example.image_data, "load", lambda name: (split, split))
    tf.config.run_functions_eagerly(True)
    tf.data.experimental.enable_debug_mode()
    small = {"epochs": 1, "batch_size": 8, "strengths": ["0.1"], "epsilons": ["0", "0.1"]}
    try:
        with flagsaver.flagsaver(output_dir=str(tmp_path), **small):
            example.main([])
    finally:
        tf.config.run_functions_eagerly(False)
    full, low, penalized = json.loads((tmp_path / "adversarial.json").read_text())["runs"]
    assert (full["method"], low["method"], penalized["strength"]) == ("full_rank", "low_rank", 0.1)
    assert low["weights"] < full["weights"]
    assert all(len(run["accuracies"]) == 2 for run in (full, low, penalized))
    assert "epsilon 0.1" in capsys.readouterr().out
