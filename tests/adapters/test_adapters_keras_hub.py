"""Adapters of a task of KerasHub: trained on tokens, generating, and saved as a preset."""

import keras
import numpy as np
import pytest

import keras_lowrank as klr

keras_hub = pytest.importorskip("keras_hub")

rng = np.random.default_rng(0)
TOKENS = rng.integers(4, 16, (8, 6))
BATCH = {"token_ids": TOKENS, "padding_mask": np.ones((8, 6), bool)}
PROMPT = {
    "token_ids": np.array([[1, 5, 6, 0, 0, 0]]),
    "padding_mask": np.array([[1, 1, 1, 0, 0, 0]], bool),
}


def make():
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=16,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
        head_dim=4,
    )
    return keras_hub.models.GemmaCausalLM(backbone, preprocessor=None)


@pytest.fixture(scope="module")
def task():
    task = make()
    klr.add_adapters(task, rank=2, max_rank=4)
    task.compile(truncation=0.1, optimizer=keras.optimizers.Adam(0.01), sampler="greedy")
    task.fit(BATCH, np.roll(TOKENS, -1, 1), batch_size=4, verbose=0)
    return task


def logits(task):
    return np.asarray(task(BATCH))


def test_the_layers_are_those_of_lora(task):
    paths = [path.split("/")[-2] for path in task.ranks]
    assert paths == ["query", "value"]


def test_a_task_generates_and_falls_back_to_its_base(task):
    adapters, before = task._keras_lowrank_adapters, logits(task)
    base = logits(make())
    assert np.abs(before - base).max() > 1e-4
    assert task.generate(PROMPT, stop_token_ids=None)["token_ids"].shape == (1, 6)
    with adapters.disabled():
        np.testing.assert_array_equal(logits(task), base)
    np.testing.assert_array_equal(logits(task), before)


def test_a_preset_is_a_plain_one_with_the_sums(task, tmp_path):
    task.save_to_preset(str(tmp_path / "preset"))
    loaded = keras_hub.models.CausalLM.from_preset(str(tmp_path / "preset"))
    assert type(loaded) is keras_hub.models.GemmaCausalLM
    np.testing.assert_allclose(logits(loaded), logits(task), atol=1e-5)


def test_adapters_go_to_another_task_and_are_merged_there(task, tmp_path):
    path = tmp_path / "a.adapters.h5"
    task._keras_lowrank_adapters.save(path)
    other = make()
    klr.load_adapters(other, path)
    np.testing.assert_array_equal(logits(other), logits(task))
    klr.merge_adapters(other)
    assert type(other) is keras_hub.models.GemmaCausalLM
    np.testing.assert_allclose(logits(other), logits(task), atol=1e-5)
    other.compile(loss="auto")
    assert other.generate(PROMPT, stop_token_ids=None)["token_ids"].shape == (1, 6)
