"""The example of fine-tuning for text: its tasks, and what it reports, on tiny models."""

import contextlib
import json

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from example_programs import imported


@pytest.fixture(scope="module")
def example():
    with imported("finetune_text", "finetuning", "image_data") as module:
        yield module


SMALL = {
    **{"tokens": 12, "length": 6, "width": 8, "heads": 2, "layers": 1, "train": 16, "test": 8},
    **{"pretraining": 1, "epochs": 1, "batch_size": 8, "lora": ["1"], "rank": 1, "max_rank": 2},
}


@contextlib.contextmanager
def run_eagerly():
    tf.config.run_functions_eagerly(True)
    tf.data.experimental.enable_debug_mode()
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def runs_of(example, folder, name, **options):
    with run_eagerly(), flagsaver.flagsaver(output_dir=str(folder), **{**SMALL, **options}):
        example.main([])
    return json.loads((folder / f"{name}.json").read_text())["runs"]


def test_sequences_go_up_by_their_steps_in_turn(example):
    with flagsaver.flagsaver(**SMALL):
        inputs, targets = example.examples(5, 2, seed=0)
        tokens, steps = example.sequences(5, 2, seed=0)
        with flagsaver.flagsaver(task="classify"):
            same, labels = example.examples(5, 2, seed=0)
    assert inputs.shape == targets.shape == (5, 6)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    moves = (targets - inputs) % 12
    np.testing.assert_array_equal(moves, np.tile(steps, 3))
    np.testing.assert_array_equal(same, tokens[:, :-1])
    np.testing.assert_array_equal(labels, np.maximum(moves[:, 0], moves[:, 1]))


@pytest.mark.slow
def test_every_method_is_in_the_table_the_file_and_the_plot(example, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="plots need the extra `examples`")
    plot = tmp_path / "loss.svg"
    options = {"quantize": "int8", "plot": str(plot), "tolerances": []}
    runs = runs_of(example, tmp_path, "count", **options)
    names = [run["method"].split(",")[0] for run in runs]
    assert names == ["all weights", "LoRA", "adapters", "adapters on int8"]
    full, lora, budget, _ = (run["trained"] for run in runs)
    assert lora < full and budget <= lora * 2
    assert runs[-1]["base_bytes"] < 0.5 * runs[2]["base_bytes"] == 0.5 * 4 * full
    printed = capsys.readouterr().out
    assert all(run["method"][:8] in printed for run in runs)
    assert "LoRA, rank" in plot.read_text()


@pytest.mark.slow
def test_a_classifier_learns_the_larger_step(example, tmp_path):
    runs = runs_of(example, tmp_path, "classify", task="classify", tolerances=[])
    assert len(runs) == 3 and all(np.isfinite(run["loss"]) for run in runs)


@pytest.mark.slow
def test_a_preset_of_keras_hub_is_fine_tuned(example, tmp_path, monkeypatch):
    hub = pytest.importorskip("keras_hub", reason="needs the extra `hub`").models
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "a", "film"]
    preprocessor = hub.BertTextClassifierPreprocessor(hub.BertTokenizer(words), sequence_length=6)
    backbone = hub.BertBackbone(
        vocabulary_size=len(words),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=6,
    )
    hub.BertTextClassifier(backbone, 2, preprocessor).save_to_preset(str(tmp_path / "small"))
    texts = np.array(["a good film", "a bad film"] * 8)
    data = (texts, np.array([1, 0] * 8))
    monkeypatch.setattr(example, "glue_data", lambda: (data, data, 2))
    runs = runs_of(
        example, tmp_path, "small_sst2", preset=str(tmp_path / "small"), glue="sst2", lora=["2"]
    )
    names = [run["method"].split(",")[0] for run in runs]
    assert names == ["all weights", "head alone", "LoRA", "adapters", "adapters"]
    head = runs[1]["trained"]
    assert head == 8 * 2 + 2
    assert runs[2]["trained"] >= head + 2 * 2 * (8 + 8)
    assert {path.split("/")[-2] for path in runs[3]["ranks"]} == {"query", "value"}


def test_a_task_of_glue_is_texts_and_labels(example, monkeypatch):
    columns = {"idx": [0, 1], "label": [1, 0], "sentence1": ["a", "b"], "sentence2": ["c", "d"]}
    whole = tf.data.Dataset.from_tensor_slices(columns)

    class Builder:
        class info:  # noqa: N801
            splits = ("train", "validation_matched", "test")

            class features:  # noqa: N801
                pass

        def as_dataset(self, split):
            assert split in ("train", "validation_matched")
            return whole

    Builder.info.features = {"label": type("Label", (), {"num_classes": 3})}
    monkeypatch.setattr(example.tfds, "builder", lambda name: Builder())
    monkeypatch.setattr(example.image_data, "prepare", lambda builder: None)
    with flagsaver.flagsaver(preset="bert", glue="mnli"):
        ((first, second), labels), held_out, classes = example.glue_data()
    assert first.tolist() == [b"a", b"b"] and second.tolist() == [b"c", b"d"]
    assert labels.tolist() == [1, 0] and len(held_out) == 2 and classes == 3
