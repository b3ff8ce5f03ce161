"""Models and tasks of KerasHub, made low-rank in place."""

import pathlib

import keras
import numpy as np
import pytest
from reference.exported import predict_by_name
from reference.hub_models import (
    MODELS,
    TASKS,
    at_full_rank,
    inputs_of,
    prompt_of,
    row,
    signature_of,
)

from keras_lowrank import (
    LowRankModel,
    find_low_rank_layers,
    from_keras,
    make_low_rank,
    to_keras,
)

keras_hub = pytest.importorskip("keras_hub", reason="needs the extra `hub`")
hub, samplers = keras_hub.models, keras_hub.samplers

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "transformers.md"
QUICK = "DistilBERT"
ALL = [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]

SUFFIXES = {"tf_saved_model": "", "litert": ".tflite", "onnx": ".onnx"}

# Its experts are one stack of matrices, in a layer of a class of its own.
STACKED = {"Mixtral"}


def outputs_of(model, inputs):
    return [np.asarray(one) for one in keras.tree.flatten(model(inputs, training=False))]


def distance(one, other, inputs):
    pairs = zip(outputs_of(one, inputs), other, strict=True)
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)


@pytest.mark.parametrize("name", ALL)
def test_almost_all_weights_are_converted_as_the_guide_says(name):
    report = make_low_rank(MODELS[name](hub), rank=16)
    assert report.share >= 0.85 or name in STACKED
    assert row(name, report) in GUIDE.read_text()


@pytest.mark.parametrize("name", ALL)
def test_outputs_at_full_rank_are_the_same(name):
    model = MODELS[name](hub)
    inputs, cls = inputs_of(model), type(model)
    for variable in model.trainable_variables:  # a bias of zero shows no error
        variable.assign_add(0.02 * np.random.default_rng(1).standard_normal(variable.shape))
    before = outputs_of(model, inputs)
    at_full_rank(model)
    assert isinstance(model, cls) and isinstance(model, LowRankModel)
    assert distance(model, before, inputs) < 1e-5


# Those with a matrix of its own for the way back train it in a task alone.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_trains_and_loads(name, tmp_path):
    model = MODELS[name](hub)
    inputs = inputs_of(model)
    make_low_rank(model, rank=16)
    before = outputs_of(model, inputs)
    model.compile("adam", "mse", run_eagerly=True, integrator="parallel")
    targets = keras.tree.map_structure(np.zeros_like, model.predict(inputs, verbose=0))
    model.fit(inputs, targets, verbose=0)
    assert distance(model, before, inputs) > 1e-5
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    # Keras may number names otherwise.
    assert type(again) is type(model) and [*again.ranks.values()] == [*model.ranks.values()]
    assert distance(again, outputs_of(model, inputs), inputs) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_copy_and_the_way_back_are_of_the_class(name):
    model = MODELS[name](hub)
    inputs = inputs_of(model)
    before = outputs_of(model, inputs)
    low = from_keras(model, tolerance=0.0, only_smaller=False)
    plain = to_keras(low)
    assert isinstance(low, type(model)) and isinstance(low, LowRankModel)
    assert type(plain) is type(model) and not find_low_rank_layers(plain)
    assert not find_low_rank_layers(model)
    assert distance(low, before, inputs) < 1e-5 > distance(plain, before, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
@pytest.mark.parametrize("name", MODELS)
def test_exports_compute_what_the_model_does(name, format, tmp_path):
    model = MODELS[name](hub)
    make_low_rank(model, rank=16)
    inputs = inputs_of(model, batch=1)
    path = tmp_path / f"model{SUFFIXES[format]}"
    fixed = signature_of(model, inputs)
    signature = None if format == "tf_saved_model" else fixed
    model.export(path, format, False, signature, example_inputs=inputs)
    made = predict_by_name(path, format, fixed, inputs)
    assert distance(model, made, inputs) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_task_generates_the_same_before_and_after(name):
    task = getattr(hub, TASKS[name])(backbone=MODELS[name](hub), preprocessor=None)
    rng = np.random.default_rng(1)
    for variable in task.trainable_variables:
        variable.assign_add(0.1 * rng.standard_normal(variable.shape))
    before = tokens_of(task)
    assert len(np.unique(before[:, 3:])) > 3
    at_full_rank(task)
    np.testing.assert_array_equal(tokens_of(task), before)
    np.testing.assert_array_equal(tokens_of(to_keras(task)), before)


def tokens_of(task):
    """What a task without a preprocessor generates: with one, `generate` calls the same."""
    sampler = samplers.TopKSampler(k=50, seed=1)  # the likeliest token is soon always the same
    task.compile(sampler=sampler, run_eagerly=True)
    prompt = keras.tree.map_structure(keras.ops.convert_to_tensor, prompt_of(task))
    made = task.make_generate_function()(prompt, stop_token_ids=None)
    return np.asarray(made["decoder_token_ids" if "decoder_token_ids" in made else "token_ids"])


@pytest.fixture(scope="module")
def tokenizer():
    words = ["<|endoftext|>", "!", "Ġ", *"abcdefghij", *(f"Ġ{one}" for one in "abcdefghij")]
    merges = [f"Ġ {one}" for one in "abcdefghij"]
    return hub.GPT2Tokenizer({word: index for index, word in enumerate(words)}, merges)


@pytest.fixture
def task(tokenizer):
    keras.utils.set_random_seed(3)
    backbone = hub.GPT2Backbone(
        vocabulary_size=23,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        max_sequence_length=8,
        dropout=0.0,
    )
    for variable in backbone.trainable_variables:
        variable.assign(np.random.default_rng(7).standard_normal(variable.shape))
    preprocessor = hub.GPT2CausalLMPreprocessor(tokenizer, sequence_length=8)
    task = hub.GPT2CausalLM(backbone=backbone, preprocessor=preprocessor)
    task.compile(sampler="greedy", run_eagerly=True)
    return task


def said(task):
    texts = task.generate(["a b", "c d"], max_length=8, stop_token_ids=None)
    assert all(len(text) > len("a b") + 3 for text in texts)
    return texts


def test_a_task_generates_the_same_text_before_and_after(task, tmp_path):
    before = said(task)
    at_full_rank(task)
    assert said(task) == before
    task.save(tmp_path / "task.keras")
    again = keras.saving.load_model(tmp_path / "task.keras")
    again.compile(sampler="greedy", run_eagerly=True)
    assert said(again) == before
    task.save_to_preset(str(tmp_path / "preset"))
    plain = hub.CausalLM.from_preset(str(tmp_path / "preset"))
    plain.compile(sampler="greedy", run_eagerly=True)
    assert type(plain) is hub.GPT2CausalLM
    assert said(plain) == before


def test_a_copy_of_a_task_and_the_way_back_generate_the_same_text(task):
    before = said(task)
    low = from_keras(task, tolerance=0.0, only_smaller=False)
    assert type(task) is hub.GPT2CausalLM and isinstance(low, LowRankModel)
    with pytest.raises(ValueError, match=r"Use `type\(model\).from_config"):
        keras.models.clone_model(low)
    clone = type(low).from_config(low.get_config())
    assert type(clone) is type(low) and clone.ranks == low.ranks
    clone.set_weights(low.get_weights())
    plain = to_keras(low)
    assert type(plain) is hub.GPT2CausalLM
    for one in (low, plain, clone):
        assert one.preprocessor is not task.preprocessor
        one.compile(sampler="greedy", run_eagerly=True)
        if one is clone:  # Keras clones no vocabularies
            one.preprocessor = task.preprocessor
        assert said(one) == before


def test_a_task_takes_texts_and_its_own_defaults(task):
    make_low_rank(task, rank=4, include=["feedforward*", "token_embedding"])
    assert task.ranks.keys() == {f"gpt2_backbone/{path}" for path in task.backbone.ranks}
    before = said(task)
    task.compile(integrator="parallel", run_eagerly=True, sampler="greedy")
    assert task.optimizer.learning_rate == np.float32(2e-5)
    task.optimizer.learning_rate = 0.1
    history = task.fit(["a b c d e f"] * 4, batch_size=4, epochs=2, verbose=0).history
    assert "sparse_categorical_accuracy" in history
    assert history["loss"][-1] < history["loss"][0]
    assert said(task) != before
    lines = []
    task.summary(print_fn=lines.append)
    assert "GPT2Tokenizer" in lines[0] and "Low-rank layer" in lines[-1]
