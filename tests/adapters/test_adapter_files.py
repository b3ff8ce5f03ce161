"""Adapters in files, and models with adapters in Keras's own files."""

import re

import keras
import numpy as np
import pytest
from reference.adapted import X, dense, outputs, train

import keras_lowrank as klr
from keras_lowrank.command_line import main


@pytest.fixture(scope="module")
def model():
    model = dense()
    klr.add_adapters(model, rank=2, name="first", trainable=["norm", "bias"])
    train(model, run_eagerly=True)
    return model


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "a.adapters.h5"
    adapters_of(model).save(path)
    return path


def adapters_of(model):
    return model._keras_lowrank_adapters


def test_a_file_gives_a_fresh_model_its_adapters(model, saved):
    fresh = dense()
    adapters = klr.load_adapters(fresh, saved)
    np.testing.assert_array_equal(outputs(fresh), outputs(model))
    assert adapters.ranks == adapters_of(model).ranks and adapters.names == ["first"]
    assert saved.stat().st_size < 20_000
    train(fresh, run_eagerly=True)
    assert np.abs(outputs(fresh) - outputs(model)).max() > 1e-4


def test_fifty_rounds_lose_nothing(model, saved):
    fresh = dense()
    base, plain = outputs(fresh), fresh.get_weights()
    learned = outputs(model)
    for index in range(50):
        adapters = klr.load_adapters(fresh, saved)
        adapters.add(f"zero {index}")
        np.testing.assert_array_equal(outputs(fresh), base)
        adapters.load(saved, name=f"loaded {index}")
        adapters.switch(f"zero {index}")
        adapters.switch("first")
        np.testing.assert_array_equal(outputs(fresh), learned)
        adapters.save(saved)
        klr.merge_adapters(fresh)
        np.testing.assert_allclose(outputs(fresh), learned, atol=1e-5)
        fresh.set_weights(plain)


def test_a_second_file_is_a_second_set(saved):
    other = dense()
    adapters = klr.add_adapters(other, rank=3, trainable=["norm", "bias"])
    train(other, steps=2, run_eagerly=True)
    own = outputs(other)
    assert klr.load_adapters(other, saved, name="loaded") is adapters
    assert adapters.names == ["loaded", "default"]
    adapters.switch("default")
    np.testing.assert_array_equal(outputs(other), own)


def test_files_of_others_are_refused(model, saved, tmp_path):
    damaged = tmp_path / "damaged.adapters.h5"
    contents = bytearray(saved.read_bytes())
    held = model.get_layer("head").delta.U.numpy().tobytes()
    contents[contents.index(held)] ^= 0xFF
    damaged.write_bytes(contents)
    weights = tmp_path / "plain.weights.h5"
    dense().save_weights(weights)
    other = dense()
    klr.add_adapters(other, include="head")
    for target, path, words in [
        (dense(width=7), saved, "place, .shape"),
        (other, saved, "place, .shape"),
        (dense(), weights, "`Adapters.save` has written"),
        (dense(), damaged, "damaged"),
    ]:
        kind = type(target)
        with pytest.raises(ValueError, match=words):
            klr.load_adapters(target, path)
        assert type(target) is kind


def test_the_command_line_prints_ranks_and_spectra(model, saved, capsys):
    main(["adapters", str(saved)])
    printed = capsys.readouterr().out
    for path, delta in adapters_of(model).deltas.items():
        line = next(one for one in printed.splitlines() if one.startswith(path))
        assert f" {delta.rank} " in line and f"{delta.factors.singular_values()[0]:.3g}" in line


@pytest.fixture
def files(saved, tmp_path, monkeypatch):
    dense().save(tmp_path / "base.keras")
    dense(width=7).save(tmp_path / "other.keras")
    quantized = dense()
    quantized.get_layer("body").quantize("int8")
    quantized.save(tmp_path / "int8.keras")
    (tmp_path / "text.h5").write_text("no adapters")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_was_trained_on_a_quantized_base_is_merged_into_the_one_from_before(tmp_path):
    quantized, plain = dense(), dense()
    for name in ("body", "head"):
        quantized.get_layer(name).quantize("int8")
    adapters = klr.add_adapters(quantized, rank=2, trainable=["norm", "bias"])
    train(quantized, run_eagerly=True)
    adapters.save(tmp_path / "a.adapters.h5")
    klr.load_adapters(plain, tmp_path / "a.adapters.h5").merge()
    for one, other in zip(plain.get_layer("norm").weights, quantized.get_layer("norm").weights):
        np.testing.assert_array_equal(one, other)
    learned = outputs(plain)
    rounded = np.abs(learned - outputs(quantized)).max()
    assert rounded < 0.05 * np.abs(learned).max() < np.abs(learned - outputs(dense())).max()


def test_the_command_line_merges_into_a_plain_model(model, files, capsys):
    main(["merge", "base.keras", "a.adapters.h5", "merged.keras"])
    printed = capsys.readouterr().out
    assert "head/delta" in printed and "Wrote merged.keras" in printed
    loaded = keras.saving.load_model("merged.keras")
    assert type(loaded) is type(dense()) and len(loaded.trainable_variables) == 6
    np.testing.assert_allclose(outputs(loaded), outputs(model), atol=1e-5)
    main(["merge", "base.keras", "a.adapters.h5"])
    assert (files / "base_merged.keras").is_file()


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.keras", "a.adapters.h5"], "There is no such file: missing.keras"),
        (["base.keras", "missing.h5"], "There is no such file: missing.h5"),
        (["base.keras", "text.h5"], "`Adapters.save` has written"),
        (["base.keras", "base.keras"], "`Adapters.save` has written"),
        (["other.keras", "a.adapters.h5"], "place, .shape"),
        (["int8.keras", "a.adapters.h5"], "kernel of floats"),
        (["base.keras", "a.adapters.h5", "new.h5"], "must end in .keras"),
        (["base.keras", "a.adapters.h5", "other.keras"], "Pass --overwrite"),
    ],
)
def test_what_cannot_be_merged_is_one_line_and_leaves_no_file(files, capsys, arguments, message):
    before = {path: path.read_bytes() for path in files.iterdir()}
    with pytest.raises(SystemExit) as end:
        main(["merge", *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 1 and len(error.splitlines()) == 1 and error.startswith("error: ")
    assert re.search(message, error), error
    assert before == {path: path.read_bytes() for path in files.iterdir()}


def test_weights_that_are_saved_are_the_sums(model, tmp_path):
    path = tmp_path / "sum.weights.h5"
    model.save_weights(path)
    plain = dense()
    plain.load_weights(path)
    np.testing.assert_allclose(outputs(plain), outputs(model), atol=1e-5)
    again = dense()
    adapters = klr.add_adapters(again, rank=2)
    train(again, run_eagerly=True)
    again.load_weights(path)
    np.testing.assert_allclose(outputs(again), outputs(model), atol=1e-5)
    assert all(np.all(delta.kernel == 0) for delta in adapters.deltas.values())


def test_a_loaded_model_is_plain_keras(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(dense())
    assert {type(one).__module__.partition(".")[0] for one in loaded.layers} == {"keras"}
    np.testing.assert_allclose(outputs(loaded), outputs(model), atol=1e-5)
    loaded.compile("sgd", "mse", run_eagerly=True)
    assert np.isfinite(loaded.train_on_batch(X, outputs(model)))
