"""The transformer example: its texts, its network, and what it reports, on a tiny task."""

import contextlib
import io
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import flags
from absl.testing import flagsaver
from example_programs import imported


@pytest.fixture(scope="module")
def example():
    with imported("transformer_text") as module:
        yield module


SMALL = {
    **{"train": 60, "test": 20, "length": 6, "width": 8, "heads": 2, "epochs": 1, "seeds": 1},
    **{"batch_size": 20, "layers": 1, "compression": ["0.6"]},
}


@pytest.mark.parametrize("task", ["sort", "reverse", "add"])
def test_generated_pairs_are_different_right_and_numbered(example, task):
    texts = example.text_pairs
    drawn = texts.generate(task, 50, 9, seed=0)
    assert drawn == texts.generate(task, 50, 9, seed=0) != texts.generate(task, 50, 9, seed=1)
    assert len(set(drawn)) == 50 and max(len(source) for source, _ in drawn) <= 9
    for source, target in drawn:
        right = {
            "sort": lambda s: "".join(sorted(s)),
            "reverse": lambda s: "".join(reversed(s)),
            "add": lambda s: str(sum(int(part) for part in s.split("+")))[::-1],
        }[task](source)
        assert target == right
    corpus = texts.corpus(drawn[:40], drawn[40:], words=False)
    assert (len(corpus.train), len(corpus.test)) == (40, 10)
    _check_numbers(corpus, drawn[:40], corpus.train)
    batch = next(iter(corpus.train.training_batches(8, seed=0)))
    assert [part.shape[0] for part in keras.tree.flatten(batch)] == [8, 8, 8]


def _check_numbers(corpus, pairs, numbers):
    for (source, target), row, inputs, outputs in zip(pairs, *numbers, strict=True):
        assert corpus.source.text(row) == source and corpus.target.text(outputs) == target
        assert inputs[0] == corpus.target.start and corpus.target.end in outputs
        length = np.count_nonzero(outputs)
        np.testing.assert_array_equal(inputs[1:length], outputs[: length - 1])
        assert not inputs[length:].any() and outputs.max() < len(corpus.target)


def test_words_are_numbered_and_long_pairs_left_out(example):
    texts = example.text_pairs
    train = [
        ("O gato.", "The cat."),
        ("o cão e o gato", "the dog and the cat"),
        ("a b c d e f", "x"),
    ]
    corpus = texts.corpus(train, [("o rato", "the rat")], words=True, size=50, longest=5)
    assert len(corpus.train) == 2
    expected = [("o gato", "the cat"), ("o cão e o gato", "the dog and the cat")]
    _check_numbers(corpus, expected, corpus.train)
    assert corpus.source.text(corpus.test.source[0]) == "o [UNK]"


@pytest.fixture(scope="module")
def talks(example, tmp_path_factory):
    """A folder of tensorflow-datasets with a few sentences in place of the talks."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    sentences = {"pt": ["O gato.", "Um rato!", "O gato e o rato."],
                 "en": ["The cat.", "A mouse!", "The cat and the mouse."]}  # fmt: skip
    data = tf.data.Dataset.from_tensor_slices(sentences)
    name, config = example.text_pairs.TRANSLATION.split("/")
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        config=config,
        version="1.0.0",
        features=tfds.features.Translation(example.text_pairs.LANGUAGES),
        split_datasets={"train": data.skip(0), "test": data.skip(2)},
        data_dir=folder,
    )
    return folder


def test_translations_come_from_tensorflow_datasets(example, talks):
    """Read from a small set with the features of the large one."""
    with flagsaver.flagsaver(translate=True, data_dir=talks, **SMALL):
        corpus = example.load()
    assert (len(corpus.train), len(corpus.test)) == (3, 1)
    assert corpus.source.text(corpus.test.source[0]) == "o gato e o rato"
    assert corpus.target.text(corpus.test.outputs[0]) == "the cat and the mouse"


def test_talks_that_are_missing_are_one_line(example, tmp_path):
    values = {"translate": True, "data_dir": str(tmp_path), "download": False}
    line = f"ted_hrlr_translate/pt_to_en/1.0.0 is not in {tmp_path}. Name its folder with"
    with flagsaver.flagsaver(**values), pytest.raises(SystemExit, match=re.escape(line)):
        example.load()


@pytest.mark.slow
def test_a_run_reports_translations(example, talks, tmp_path):
    values = {**SMALL, "translate": True, "data_dir": talks, "batch_size": 2}
    printed = _run(example, tmp_path, **values)
    full, low = json.loads((tmp_path / "ted_hrlr_translate_pt_to_en.json").read_text())["runs"]
    assert 0.0 <= full["bleu"] <= 100.0 and low["weights"]["projections"] < low["weights"]["full"]
    assert "BLEU" in printed and "o gato e o rato" in printed


def test_bleu_is_that_of_papineni(example):
    bleu = example.text_pairs.bleu
    cat = ["the", "cat", "sat", "on", "the", "mat"]
    assert bleu([cat], [cat]) == pytest.approx(100.0)
    # Precisions 5/5, 3/4, 2/3 and 1/2; five words for six.
    short = np.exp(1 - 6 / 5) * (3 / 4 * 2 / 3 / 2) ** 0.25
    assert bleu([cat], [["the", "cat", "sat", "on", "mat"]]) == pytest.approx(100 * short)
    # A word counts as often as in its reference, and a longer answer has no penalty but these.
    many = ["the", "cat", "sat", "on", "the", "mat", "the", "the"]
    precisions = [6 / 8, 5 / 7, 4 / 6, 3 / 5]
    assert bleu([cat], [many]) == pytest.approx(100 * np.prod(precisions) ** 0.25)
    assert bleu([cat, cat], [cat, many]) > bleu([cat], [many])
    assert bleu([cat], [[]]) == bleu([cat], [["a", "dog"]]) == 0.0


def test_bleu_of_a_model_is_that_of_its_answers(example, talks, monkeypatch):
    with flagsaver.flagsaver(translate=True, data_dir=talks, **SMALL):
        corpus = example.load()
    source, inputs, right = corpus.test
    monkeypatch.setattr(example, "answer", lambda model, source, start: right)
    assert example.bleu(None, corpus) == pytest.approx(100.0)
    right = np.where(right == 2, 1, right)
    unknown = corpus._replace(test=example.text_pairs.Pairs(source, inputs, right))
    assert example.bleu(None, unknown) < 60.0  # not right, although both are unknown


@pytest.fixture(scope="module")
def run(example, tmp_path_factory):
    """`(folder, corpus, the low-rank model, what was printed)` of one run of the program."""
    folder, trained = tmp_path_factory.mktemp("out"), []
    train = example.train

    def watched(method, corpus, *arguments):
        model, measured = train(method, corpus, *arguments)
        trained.append((corpus, model))
        return model, measured

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "train", watched)
        printed = _run(example, folder, **SMALL)
    return folder, *trained[-1], printed


def _run(example, folder, **values):
    """What the program prints."""
    # Without a graph: a step of sixteen kernels takes longer to trace than to run three times.
    tf.config.run_functions_eagerly(True)
    tf.data.experimental.enable_debug_mode()
    flag_values = flagsaver.flagsaver(**values, output_dir=str(folder))
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed, flag_values:
            example.main([])
    finally:
        tf.config.run_functions_eagerly(False)
    return printed.getvalue()


def test_what_is_right_word_by_word_is_right_in_one_go(example, run):
    """And padding, on either side, changes nothing."""
    _, corpus, model, _ = run
    said = example.answer(model, corpus.test.source, corpus.target.start)
    mask = corpus.test.outputs != 0
    exact = [np.array_equal(a[m], b[m]) for a, b, m in zip(said, corpus.test.outputs, mask)]
    measured = example.accuracy(model, corpus.test)
    assert measured["exact_match"] == pytest.approx(np.mean(exact))
    assert 0.0 < measured["token_accuracy"] < 1.0
    logits = model.predict_on_batch([corpus.test.source, corpus.test.inputs])
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    chances = np.take_along_axis(chances, corpus.test.outputs[..., None], -1)[..., 0]
    assert measured["loss"] == pytest.approx(-np.log(chances)[mask].mean(), rel=1e-5)
    wider = example.text_pairs.Pairs(*(np.pad(a, [(0, 0), (0, 3)]) for a in corpus.test))
    with flagsaver.flagsaver(**SMALL):
        wide = example.build(example.LOW_RANK, corpus._replace(train=wider))
    for old, new in zip(model.variables, wide.variables):
        rows = new.shape[0] - old.shape[0] if old.path.endswith("table") else 0
        new.assign(np.pad(old, [(0, rows), (0, 0)]) if rows else old)
    before = model.predict_on_batch([corpus.test.source, corpus.test.inputs])
    after = wide.predict_on_batch([wider.source, wider.inputs])[:, : before.shape[1]]
    np.testing.assert_allclose(after[mask], before[mask], atol=1e-5)


def test_a_run_reports_accuracy_ranks_and_weights(run):
    folder, _, model, printed = run
    full, low = json.loads((folder / "sort.json").read_text())["runs"]
    assert full["ranks"] == {} and full["weights"]["projections"] == full["weights"]["full"]
    assert low["weights"]["full"] == full["weights"]["full"] == 12 * 8 * 8 + 4 * 8 * 32
    assert low["ranks"] == model.ranks
    assert {path.split("/")[0] for path in model.ranks} == {
        *("encoder_0_self", "encoder_0_wide", "encoder_0_narrow", "decoder_0_self"),
        *("decoder_0_cross", "decoder_0_wide", "decoder_0_narrow"),
    }
    kept = sum(r * (8 + (8 if "/" in path else 32)) for path, r in model.ranks.items())
    assert low["weights"]["projections"] == kept <= 0.4 * full["weights"]["full"]
    saved = full["weights"]["full"] - kept
    assert low["weights"]["model"] == full["weights"]["model"] - saved
    assert "low-rank, 60%" in printed and "decoder_0_cross/query" in printed


def test_compression_that_is_no_share_is_refused(example):
    with pytest.raises(flags.IllegalFlagValueError, match="must be numbers"), flagsaver.flagsaver():
        flags.FLAGS.compression = ["75"]
