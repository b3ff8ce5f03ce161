"""What an export refuses, and what it leaves behind when it fails."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow

from keras_lowrank import LowRankDense, LowRankLSTM, LowRankModel
from keras_lowrank.export import parity, pipeline, saved_model

EVERY = pytest.mark.parametrize("format", ["tf_saved_model", "litert"])
# What stands around the writing is one for all formats.
EITHER = pytest.mark.parametrize("format", partly_slow(["tf_saved_model"], ["litert"]))


def make(rank=2):
    inputs = keras.Input((8,))
    return LowRankModel(inputs, LowRankDense(6, rank=rank)(inputs))


def path_for(tmp_path, format):
    return tmp_path / ("model" if format == "tf_saved_model" else "model.tflite")


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("format", ["keras", None, ""])
def test_unknown_format_raises(tmp_path, format):
    with pytest.raises(ValueError, match=r"`format` must be one of .*'litert'.*Received"):
        make().export(tmp_path / "model", format=format)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("format", ["litert", "tflite"])
def test_litert_path_without_its_suffix_raises(tmp_path, format):
    with pytest.raises(ValueError, match=r"must end in '\.tflite'"):
        make().export(tmp_path / "model.lite", format=format)


def test_unbuilt_model_raises(tmp_path):
    class Subclassed(LowRankModel):
        def __init__(self):
            super().__init__()
            self.low = LowRankDense(6, rank=2)

        def call(self, inputs):
            return self.low(inputs)

    with pytest.raises(ValueError, match="must be built before it is exported"):
        Subclassed().export(tmp_path / "model")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name, format", [("model.tflite", "litert"), ("model.onnx", "onnx")])
def test_a_folder_that_is_named_as_a_file_raises(tmp_path, name, format):
    with pytest.raises(ValueError, match=rf"{name[5:]}' needs format='{format}'"):
        make().export(tmp_path / name)
    assert contents(tmp_path) == {}


def test_a_loop_of_a_recurrent_layer_raises_with_what_litert_needs(tmp_path):
    inputs = keras.Input((4, 3))
    model = LowRankModel(inputs, LowRankLSTM(6, rank=2)(inputs))
    with pytest.raises(ValueError, match=r"builtin operation.*`unroll=True`"):
        model.export(tmp_path / "model.tflite", format="litert")
    assert contents(tmp_path) == {}


@EITHER
def test_existing_path_raises_unless_it_may_be_replaced(tmp_path, format):
    path = path_for(tmp_path, format)
    make().export(path, format=format, verbose=0)
    before = contents(tmp_path)
    model = make(rank=3)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.export(path, format=format, verbose=0)
    assert contents(tmp_path) == before
    model.export(path, format=format, verbose=0, overwrite=True)
    after = contents(tmp_path)
    assert after != before and len(after) == len(before)  # and nothing is left beside it
    if format == "tf_saved_model":
        values = tf.ones((2, 8))
        loaded = tf.saved_model.load(str(path))
        np.testing.assert_allclose(loaded.serve(values), model(values), atol=1e-4)


def test_an_empty_folder_is_not_overwritten_either(tmp_path, monkeypatch):
    (tmp_path / "1").mkdir()
    monkeypatch.setattr(parity, "reference", None)  # before any work
    with pytest.raises(FileExistsError):
        make().export(tmp_path / "1")


def test_folders_above_the_path_are_made(tmp_path):
    make().export(tmp_path / "name" / "1", verbose=0)
    assert (tmp_path / "name" / "1" / "saved_model.pb").exists()
    assert [p.name for p in (tmp_path / "name").iterdir()] == ["1"]


@pytest.mark.parametrize(
    "format, previous",
    partly_slow(
        [("tf_saved_model", True), ("litert", False)],
        [("tf_saved_model", False), ("litert", True)],
    ),
)
def test_artefact_that_differs_is_an_error_and_leaves_all_as_it_was(
    tmp_path, format, previous, monkeypatch
):
    path = path_for(tmp_path, format)
    if previous:
        make(rank=1).export(path, format=format, verbose=0)
    before = contents(tmp_path)

    def wrong(model):
        kernels = right(model)
        for kernel in kernels.values():
            kernel.matrices[0].assign_add(tf.fill(kernel.matrices[0].shape, 1e-2))
        return kernels

    right = pipeline.deployed_kernels
    monkeypatch.setattr(pipeline, "deployed_kernels", wrong)
    with pytest.raises(ValueError, match=r"must agree .*1\.\de-04. Nothing was written.*differ"):
        make().export(path, format=format, verbose=0, overwrite=previous)
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ([path.name] if previous else [])


@EITHER
def test_rounding_is_told_from_a_difference(tmp_path, format, monkeypatch):
    # The bound is in use: below any rounding, the same export fails.
    monkeypatch.setattr(parity, "TOLERANCE", 1e-12)
    with pytest.raises(ValueError, match="must agree"):
        make().export(path_for(tmp_path, format), format=format, verbose=0)
    assert contents(tmp_path) == {}


def test_nan_in_the_weights_is_told_from_a_difference(tmp_path):
    model = make()
    model.layers[-1].bias.assign(np.full(6, np.nan))
    with pytest.raises(ValueError, match="model itself returns NaN on random.*example_inputs"):
        model.export(tmp_path / "1", verbose=0)
    with pytest.raises(ValueError, match="returns NaN on `example_inputs`.*Check these.*weights"):
        model.export(tmp_path / "1", verbose=0, example_inputs=np.ones((2, 8)))
    assert contents(tmp_path) == {}


@EITHER
def test_failure_while_writing_leaves_the_previous_artefact(tmp_path, format, monkeypatch):
    path = path_for(tmp_path, format)
    make().export(path, format=format, verbose=0)
    before = contents(tmp_path)

    write = saved_model.write

    def full(*args):
        write(*args)
        raise OSError("no space left")

    monkeypatch.setattr(saved_model, "write", full)
    with pytest.raises(OSError, match="no space left"):
        make(rank=3).export(path, format=format, verbose=0, overwrite=True)
    assert contents(tmp_path) == before and len(list(tmp_path.iterdir())) == 1


@EITHER
def test_failure_of_the_last_move_brings_the_previous_artefact_back(tmp_path, format, monkeypatch):
    path = path_for(tmp_path, format)
    make().export(path, format=format, verbose=0)
    before = contents(tmp_path)
    rename = pathlib.Path.rename

    def fails(self, target):
        if self.parent != path.parent and self.name == path.name:
            raise OSError("cannot move")
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", fails)
    monkeypatch.setattr(pathlib.Path, "replace", fails)
    with pytest.raises(OSError, match="cannot move"):
        make(rank=3).export(path, format=format, verbose=0, overwrite=True)
    assert contents(tmp_path) == before


@EVERY
@pytest.mark.parametrize("verbose", [None, False])
def test_one_line_says_what_was_written_and_no_report_comes_unasked(
    tmp_path, format, verbose, capfd
):
    path = path_for(tmp_path, format)
    assert make().export(path, format=format, verbose=verbose) is None
    printed = capfd.readouterr().out.splitlines()
    assert len(printed) == (verbose is None)
    assert all(str(path) in line and "bytes" in line for line in printed)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
