"""The example of a language model: its text, its networks, and what it reports, at a tiny size."""

import json

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from example_programs import imported

from keras_lowrank import count_weights

SMALL = {
    **{"blocks": 1, "width": 16, "heads": 2, "context": 12, "steps": 3, "batch_size": 2},
    **{"compression": ["0.5"], "test": 2, "sample": 4, "seeds": 1},
}


@pytest.fixture(scope="module")
def example():
    with imported("language_model") as module:
        yield module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for index in range(3):
        (folder / f"{index}.txt").write_text(f"File {index} says the same again. " * 5)
    return folder


def test_files_are_held_out_whole(example, folder):
    with flagsaver.flagsaver(text=str(folder / "*.txt"), **SMALL):
        train, test = example.texts()
        assert bytes(test).startswith(b"File 0") and b"File 0" not in bytes(train)
        seen, following = next(iter(example.batches(train, 1, seed=0)))
    np.testing.assert_array_equal(seen[:, 1:], following[:, :-1])
    assert seen.shape == following.shape == (2, 12)


def test_a_text_of_one_file_is_refused(example, folder):
    with (
        flagsaver.flagsaver(text=str(folder / "0.txt"), **SMALL),
        pytest.raises(ValueError, match="two files or more. Received: 0 bytes"),
    ):
        example.texts()


def test_a_network_sees_no_later_byte(example):
    with flagsaver.flagsaver(**SMALL):
        model = example.build(example.FullRank(), 16)
    some = np.arange(12, dtype="int32")[None]
    other = np.where(np.arange(12) < 7, some, 99).astype("int32")
    before, after = (model(one).numpy() for one in (some, other))
    np.testing.assert_allclose(before[:, :7], after[:, :7], atol=1e-5)
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-3


def test_a_thin_network_has_the_weights_that_are_asked_for(example):
    with flagsaver.flagsaver(**SMALL):
        full = count_weights(example.build(example.FullRank(), 16)).full
        assert example.thin_width(full) == 16 and example._weights_at(16) == full
        thin = example.build(example.FullRank(), example.thin_width(full // 2))
    assert 0.35 * full < count_weights(thin).full < 0.65 * full


@pytest.mark.slow
def test_a_run_reports_all_methods(example, folder, tmp_path, capsys):
    tf.config.run_functions_eagerly(True)
    tf.data.experimental.enable_debug_mode()
    text = str(folder / "*.txt")
    try:
        with flagsaver.flagsaver(output_dir=str(tmp_path), text=text, **SMALL):
            example.main([])
    finally:
        tf.config.run_functions_eagerly(False)
    runs = json.loads((tmp_path / "language_model.json").read_text())["runs"]
    full, low, two, thin = runs
    assert [run["method"] for run in runs] == ["full rank", "low-rank", "two factors", "thin"]
    assert low["weights"] <= 0.5 * full["weights"] and two["weights"] == low["weights"]
    assert low["compression"] == two["compression"] == thin["compression"] == 0.5
    assert len(low["ranks"]) == 8  # the table, four projections, two of the block, the last layer
    assert all(0.0 < run["bits"] < 20.0 and run["sample"].startswith("def ") for run in runs)
    assert "low-rank, 50%" in capsys.readouterr().out
