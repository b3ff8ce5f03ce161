"""The command line: what it prints and writes, its exit codes, its errors in one line."""

import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from keras_lowrank import LowRankDense, LowRankModel
from keras_lowrank.command_line import main
from keras_lowrank.convert.inspection import plot


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with models that need a module of their own, and with that module."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_layers.py").write_text(OWN)
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    module = importlib.import_module("own_layers")
    sys.path[:] = before
    for cls in (module.Scaled, module.Registered):
        inputs = keras.Input((None,), name="x")
        x = keras.layers.Dense(3)(keras.ops.sum(cls()(inputs), axis=-1, keepdims=True))
        keras.Model(inputs, x).save(folder / f"{cls.__name__}.keras")
    net = module.Net()
    net(np.ones((1, 4)))
    net.save(folder / "Net.keras")
    forget()
    return folder


def forget():
    """As in another process, in which nothing has imported the module."""
    del sys.modules["own_layers"]
    keras.saving.get_custom_objects().pop("own>Registered")


OWN = """
import keras

class Scaled(keras.layers.Layer):
    def call(self, inputs):
        return 2.0 * inputs

@keras.saving.register_keras_serializable("own")
class Registered(Scaled):
    pass

class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(5, name="hidden")

    def call(self, inputs):
        return self.hidden(inputs)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(12, 3, name="conv")(inputs)
    x = keras.layers.Dense(30, name="hidden")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, LowRankDense(10, rank=3, name="head")(x))
    model.save(folder / "model.keras")
    (folder / "damaged.keras").write_bytes(b"PK nothing")
    half = (folder / "model.keras").read_bytes()
    (folder / "half.keras").write_bytes(half[: len(half) // 2])
    (folder / "bad.npz").write_bytes(b"PK nothing")
    np.savez(folder / "x.npz", x=np.zeros(3))
    np.save(folder / "bad.npy", np.zeros((5, 8, 8)))
    inputs = keras.Input((3,))
    keras.Model(inputs, keras.layers.Activation("relu")(inputs)).save(folder / "none.keras")
    return folder


def call(*arguments):
    """Runs one command in this process."""
    main([*map(str, arguments)])


def test_inspect_shows_layers_spectra_and_what_tolerances_leave(files, capsys):
    call("inspect", files / "model.keras")
    lines = capsys.readouterr().out.splitlines()
    header, conv, hidden, head, weights, saved = lines
    assert header.split()[:7] == ["layer", "class", "n", "x", "m", "rank", "singular"]
    assert conv.split()[:6] == ["conv", "Conv2D", "18", "x", "12", "full"]
    assert conv.split()[6][0] == "█" and len(conv.split()[6]) == 12
    assert hidden.split()[:6] == ["hidden", "Dense", "432", "x", "30", "full"]
    assert head.split()[:6] == ["head", "LowRankDense", "30", "x", "10", "3"]
    now = 18 * 12 + 432 * 30 + 3 * (30 + 10)
    assert weights.split()[:2] == ["weights", f"{now:,}"]
    assert int(weights.split()[-1].replace(",", "")) < now
    full = 18 * 12 + 432 * 30 + 30 * 10
    assert saved.split()[:2] == ["saved", f"{100 * (1 - now / full):.1f}%"]


def test_a_plot_is_the_singular_values_as_heights():
    assert plot(np.array([8.0, 7.0, 4.0, 0.5, 0.0])) == "█▇▄▁ "
    assert plot(np.zeros(3)) == "   "
    assert plot(np.linspace(1, 0, 17), width=9) == "█▇▆▅▄▃▂▁ "


def test_convert_there_and_back(files, tmp_path, capsys):
    low, plain = tmp_path / "low.keras", tmp_path / "plain.keras"
    call("convert", files / "model.keras", low, "--rank=4", "--exclude=conv")
    assert "factored" in capsys.readouterr().out
    model = keras.saving.load_model(low)
    assert isinstance(model, LowRankModel) and model.ranks == {"hidden": 4, "head": 3}
    call("convert", low, plain, "--style=merged")
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 2)).astype("float32")
    back = keras.saving.load_model(plain)
    assert [type(layer).__name__ for layer in back.layers[-2:]] == ["Dense", "Dense"]
    np.testing.assert_allclose(model(images), back(images), atol=1e-5)
    with pytest.raises(SystemExit):
        call("convert", low, plain, "--style=merged")
    call("convert", low, plain, "--style=smaller", "--overwrite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["low.keras", "plain.keras"]


def test_without_a_place_to_write_to_it_is_beside_the_model(files, tmp_path):
    model = shutil.copy(files / "model.keras", tmp_path)
    call("convert", model, "--rank=2")
    call("convert", tmp_path / "model_low_rank.keras", "--style=merged")
    call("export", model)
    call("export", model, "--format=litert")
    left = ["model", "model.keras", "model.tflite", "model_low_rank.keras"]
    left.append("model_low_rank_plain.keras")
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert (tmp_path / "model" / "1" / "saved_model.pb").is_file()


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_export_writes_a_file_and_a_report(files, tmp_path, capsys):
    images = np.random.default_rng(0).standard_normal((30, 8, 8, 2)).astype("float32")
    model = keras.saving.load_model(files / "model.keras")
    np.save(tmp_path / "images.npy", images)
    labels = model.predict(images, verbose=0).argmax(axis=-1)
    np.savez(tmp_path / "test.npz", x=images, y=labels)
    target = tmp_path / "model.tflite"
    call(
        *("export", files / "model.keras", target, "--format=litert", "--quantization=int8"),
        *(f"--representative_data={tmp_path / 'images.npy'}", "--accuracy_drop=0.2"),
        *(f"--check_data={tmp_path / 'test.npz'}", f"--report_file={tmp_path / 'report.json'}"),
        "--card",
    )
    printed = capsys.readouterr().out
    assert f"Wrote {target}: litert, {target.stat().st_size:,} bytes." in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["model_accuracy"] == 1.0 and report["artefact"]["bytes"] == target.stat().st_size
    card = (tmp_path / "model.tflite.md").read_text()
    assert f"litert, int8, {target.stat().st_size:,} bytes" in card
    call("export", files / "model.keras", target, "--format=litert", "--overwrite")
    assert target.stat().st_size > report["artefact"]["bytes"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["inspect", "missing.keras"], "There is no such file: .*missing.keras"),
        (["inspect", "damaged.keras"], "must be a file that Keras wrote.*Received: damaged"),
        (["inspect", "half.keras"], "must be a file that Keras wrote.*Received: half"),
        (["inspect", "none.keras"], "must have a layer that is, or can be, low-rank"),
        (["convert", "model.keras", "new.keras"], "Exactly one of `rank`, `tolerance`"),
        (["convert", "model.keras", "new.h5", "--rank=2"], "must end in .keras"),
        (["convert", "model.keras", "no/new.keras", "--rank=2"], "folder must exist. Received: no"),
        (["convert", "model.keras", "new.keras", "--rank=2", "--include=hat"], "Received: 'hat'"),
        (
            ["convert", "model.keras", "new.keras", "--rank=2", "--style=merged"],
            "--style converts back",
        ),
        (["convert", "none.keras", "new.keras", "--rank=2"], "needs a layer to convert"),
        (["export", "missing.keras", "new"], "There is no such file: missing.keras"),
        (["export", "model.keras", "model.keras"], "Pass --overwrite to replace it"),
        (["export", "model.keras", "new.lite", "--format=litert"], "must end in '.tflite'"),
        (
            ["export", "model.keras", "new", "--quantization=int8"],
            "needs format='litert'",
        ),
        (
            ["export", "model.keras", "new.tflite", "--format=litert", "--quantization=int8"],
            "`representative_data`, about",
        ),
        (["export", "model.keras", "new", "--representative_data=no.npy"], "no such file: no.npy"),
        (["export", "model.keras", "new", "--check_data=model.keras"], "must end in .npz"),
        (["export", "model.keras", "new", "--check_data=bad.npz"], "cannot be read as NumPy's"),
        (["export", "model.keras", "new", "--check_data=x.npz"], "must hold the arrays x and y"),
        (
            [
                *["export", "model.keras", "new.tflite", "--format=litert"],
                *["--quantization=int8", "--representative_data=bad.npy"],
            ],
            r"of the inputs, \(samples, 8, 8, 2\). Received: \(5, 8, 8\)",
        ),
    ],
)
def test_errors_are_one_line_and_leave_no_file(files, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    with pytest.raises(SystemExit) as exit:
        call(*arguments)
    assert exit.value.code == 1
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("error: ")
    assert re.search(message, captured.err)
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["look", "model.keras"], "invalid choice: 'look'.*inspect.*See .*keras_lowrank --help"),
        (["--hat"], "unrecognized arguments: --hat. See .*keras_lowrank --help"),
        (["convert"], "are required: MODEL.keras. See .*keras_lowrank convert --help"),
        (["convert", "a", "b", "c"], "unrecognized arguments: c. See .*convert --help"),
        (["convert", "a", "--tol=1"], "unrecognized arguments: --tol=1"),
        (["convert", "a", "--rank=x"], "--rank: invalid int value: 'x'"),
        (["inspect", "a", "--rank=2"], "unrecognized arguments: --rank=2. See .*inspect --help"),
        (["export", "a", "--format=h5"], "--format: invalid choice: 'h5'.*litert"),
        (["export", "a", "--accuracy_drop=2"], "--accuracy_drop: must be from 0 to 1"),
        (["export", "a", "--input_shape=b"], "--input_shape: must be comma-separated.*Received: b"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        call(*arguments)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and re.match(f"error: .*{message}", error)


def test_without_a_command_and_by_help_all_of_them_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    call()
    listed = capsys.readouterr().out
    with pytest.raises(SystemExit) as exit:
        call("--help")
    assert exit.value.code == 0 and capsys.readouterr().out == listed
    for name in ("inspect", "convert", "export", "merge"):
        assert len(re.findall(rf"^ +{name} .*: {name} model.keras", listed, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    "name, own, others",
    [
        ("inspect", ["--import", "--html", "--overwrite"], ["--rank", "--format"]),
        ("convert", ["--import", "--rank", "--overwrite"], ["--format"]),
        ("export", ["--import", "--format", "--overwrite"], ["--rank"]),
        ("merge", ["ADAPTERS.h5", "--import", "--overwrite"], ["--rank", "--format"]),
    ],
)
def test_the_help_of_a_command_has_its_own_options_on_one_screen(
    name, own, others, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as exit:
        call(name, "--help")
    shown = capsys.readouterr().out
    assert exit.value.code == 0 and len(shown.splitlines()) <= 50
    assert shown.startswith(f"usage: python -m keras_lowrank {name} MODEL.keras")
    assert all(option in shown for option in own) and not any(one in shown for one in others)


@pytest.mark.parametrize("name", ["Scaled", "Registered"])
def test_a_class_that_is_not_known_is_named_and_imported(own, monkeypatch, capsys, name):
    monkeypatch.chdir(own.parent)  # not where the module is
    with pytest.raises(SystemExit):
        call("inspect", own / f"{name}.keras")
    assert re.search(
        rf"needs the unknown class '{name}'. Pass --import=MODULE", capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        call("inspect", own / f"{name}.keras", "--import=no_such_module")
    assert "--import must name modules" in capsys.readouterr().err
    monkeypatch.chdir(own)
    call("inspect", own / f"{name}.keras", "--import=own_layers")
    assert "dense" in capsys.readouterr().out.splitlines()[1]
    forget()


def test_inspect_says_layer_by_layer_why_nothing_converts(own, tmp_path, capsys, monkeypatch):
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(4, 3, groups=2, name="grouped")(inputs)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.Dense(3, kernel_constraint="non_neg", name="bound")(x)
    x = keras.layers.Reshape((-1, 3))(x)
    lstm = keras.layers.LSTM(2, kernel_constraint="non_neg", return_sequences=True)
    x = keras.layers.Bidirectional(lstm, name="both")(x)
    x = keras.layers.SimpleRNN(2, name="simple")(x)
    keras.Model(inputs, x).save(tmp_path / "refused.keras")
    with pytest.raises(SystemExit):
        call("inspect", tmp_path / "refused.keras")
    printed = capsys.readouterr()
    rows = {line.split()[0]: line for line in printed.out.splitlines()}
    assert "groups" in rows["grouped"]
    assert "no low-rank layer for the class" in rows["depthwise/kernel"]
    assert "kernel_constraint" in rows["bound"]
    assert "kernel_constraint" in rows["both/forward_lstm/lstm_cell/kernel"]
    assert "no low-rank layer for the class" in rows["simple/simple_rnn_cell/kernel"]
    assert "must have a layer that is, or can be, low-rank" in printed.err
    monkeypatch.chdir(own)
    call("inspect", own / "Net.keras", "--import=own_layers")
    assert re.search(r"hidden +Dense ", capsys.readouterr().out)


def test_the_shape_and_the_batch_size_of_a_file_are_told(own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(own)
    np.save(tmp_path / "x.npy", np.ones((2, 7), "float32"))
    target = tmp_path / "m.tflite"
    export = ("export", own / "Scaled.keras", target, "--import=own_layers", "--format=litert")
    call(*export, "--input_shape=7", "--batch_size=1", f"--example_inputs={tmp_path / 'x.npy'}")
    (detail,) = Interpreter(str(target)).get_input_details()
    assert detail["shape_signature"].tolist() == [1, 7]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.tflite", "x.npy"]
    with pytest.raises(SystemExit):
        call(*export, "--input_shape=y=7", "--overwrite")
    assert "those of the inputs x" in capsys.readouterr().err


def test_a_disk_that_is_full_leaves_nothing(files, tmp_path, capsys, monkeypatch):
    def save(self, path):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Model, "save", save)
    with pytest.raises(SystemExit):
        call("convert", files / "model.keras", tmp_path / "low.keras", "--rank=2")
    error = capsys.readouterr().err
    assert re.search("with room on its disk.*Received: No space left on device", error)
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_it_runs_as_a_module(files):
    run = subprocess.run(
        [sys.executable, "-m", "keras_lowrank", "inspect", str(files / "missing.keras")],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        timeout=120,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("error: There is no such file")
