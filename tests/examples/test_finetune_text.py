"""The example of fine-tuning: its tasks, and what it reports, on a tiny model."""

import json

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from example_programs import imported


@pytest.fixture(scope="module")
def example():
    with imported("finetune_text") as module:
        yield module


SMALL = {
    **{"tokens": 12, "length": 6, "width": 8, "heads": 2, "layers": 1, "train": 16, "test": 8},
    **{"pretraining": 1, "epochs": 1, "batch_size": 8, "lora": ["1"], "rank": 1, "max_rank": 2},
}


def test_sequences_go_up_by_their_steps_in_turn(example):
    with flagsaver.flagsaver(**SMALL):
        inputs, targets = example.sequences(5, 2, seed=0)
    assert inputs.shape == targets.shape == (5, 6)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    moves = (targets - inputs) % 12
    np.testing.assert_array_equal(moves[:, 0::2], np.tile(moves[:, :1], 3))
    np.testing.assert_array_equal(moves[:, 1::2], np.tile(moves[:, 1:2], 3))


@pytest.mark.slow
def test_every_method_is_in_the_table_and_in_the_file(example, tmp_path, capsys):
    tf.config.run_functions_eagerly(True)
    tf.data.experimental.enable_debug_mode()
    try:
        with flagsaver.flagsaver(output_dir=str(tmp_path), **SMALL):
            example.main([])
    finally:
        tf.config.run_functions_eagerly(False)
    runs = json.loads((tmp_path / "counting.json").read_text())["runs"]
    names = [run["method"].split(",")[0] for run in runs]
    assert names == ["all weights", "LoRA", "adapters", "adapters"]
    full, lora, _, budget = (run["trained"] for run in runs)
    assert lora < full and budget <= runs[1]["trained"] * 2
    printed = capsys.readouterr().out
    assert all(run["method"][:8] in printed for run in runs)
