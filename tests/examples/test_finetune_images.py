"""The example of fine-tuning for images, on a few that are made up."""

import json

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from example_programs import imported


@pytest.fixture(scope="module")
def example():
    with imported("finetune_images", "finetuning", "image_data") as module:
        yield module


@pytest.fixture
def images(example, monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (60, 32, 32, 3)).astype("uint8")
    split = example.image_data.Split(pixels, np.arange(60) % 10)
    monkeypatch.setattr(example.image_data, "load", lambda name: (split, split))
    return split


def test_halves_are_five_classes_each(example, images):
    (x, y), (_, others) = example.half(images, 0), example.half(images, 5)
    assert set(y) == set(range(5)) and set(others) == set(range(5, 10))
    np.testing.assert_allclose(x[5], images.images[10] / 255.0, atol=1e-6)
    with flagsaver.flagsaver(limit=7):
        assert len(example.half(images, 5)[1]) == 7


@pytest.mark.slow
def test_lora_has_no_convolution_and_adapters_have_all(example, images, tmp_path):
    small = {
        "width": 2,
        "pretraining": 1,
        "epochs": 1,
        "batch_size": 30,
        "lora": ["1"],
        "budgets": ["600"],
    }
    tf.config.run_functions_eagerly(True)
    try:
        with flagsaver.flagsaver(**small, rank=1, max_rank=2, output_dir=str(tmp_path)):
            example.main([])
    finally:
        tf.config.run_functions_eagerly(False)
    runs = json.loads((tmp_path / "cifar10.json").read_text())["runs"]
    full, head, lora, tolerance, budget = runs
    assert head["method"] == "head alone" and head["trained"] == 16 * 10 + 10
    # The one hidden dense layer, from 4 x 4 x 8 inputs to 16 units.
    assert lora["trained"] == head["trained"] + 128 + 16
    assert len(tolerance["ranks"]) == 6 + 1
    assert budget["ranks"].keys() == tolerance["ranks"].keys()
    assert head["trained"] < budget["trained"] < full["trained"]
