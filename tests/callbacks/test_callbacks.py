"""Callbacks that show and steer the ranks, and what a summary says of them."""

import csv
import importlib.util
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference.cases import partly_slow

from keras_lowrank import LowRankDense, LowRankModel, Parallel, callbacks

rng = np.random.default_rng(0)
X = rng.standard_normal((16, 6)).astype("float32")
Y = rng.standard_normal((16, 3)).astype("float32")


def make(truncation=0.6, learning_rate=0.1, integrator=None, **compile_arguments):
    """A model whose ranks change once an epoch, at its end."""
    inputs = keras.Input((6,))
    body = keras.Sequential([keras.Input((6,)), LowRankDense(6, rank=3, name="low")], name="body")
    x = LowRankDense(6, rank=5, name="low")(body(inputs))
    model = LowRankModel(inputs, keras.layers.Dense(3, name="head")(x), name="net")
    optimizer, integrator = keras.optimizers.SGD(learning_rate), integrator or Parallel(4)
    arguments = {"metrics": ["mae"], "truncation": truncation, **compile_arguments}
    # A graph is not what callbacks look at, but for several steps of one.
    arguments.setdefault("run_eagerly", "steps_per_execution" not in arguments)
    model.compile(optimizer, "mse", integrator=integrator, **arguments)
    return model


def fit(model, *watches, epochs=2, **kwargs):
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(X, Y, epochs=epochs, callbacks=list(watches), **kwargs).history


class Seen(keras.callbacks.Callback):
    """What a callback finds in the logs, and what the ranks are then."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs, self.ranks = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(dict(logs))
        self.ranks.append(self.model.ranks)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs))


# RankHistory.


def test_rank_history_by_epoch_and_by_step_in_one_fit(tmp_path):
    model, seen = make(), Seen()
    by_epoch = callbacks.RankHistory()
    by_step = callbacks.RankHistory(freq=3)
    fit(model, seen, by_epoch, by_step, epochs=2)
    assert by_epoch.epochs == [0, 1] and by_epoch.steps == [4, 8]
    assert by_step.epochs == [0, 1] and by_step.steps == [3, 6]
    for path in ("body/low", "low"):
        assert by_epoch.ranks[path] == [seen.ranks[3][path], seen.ranks[7][path]]
        assert by_step.ranks[path] == [seen.ranks[2][path], seen.ranks[5][path]]
    assert by_step.ranks["low"] != [5, 5]  # the ranks do move
    by_step.to_csv(tmp_path / "ranks.csv")
    with open(tmp_path / "ranks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "step", "body/low", "low"]
    assert [int(row["step"]) for row in rows] == by_step.steps
    assert [int(row["low"]) for row in rows] == by_step.ranks["low"]


def test_rank_history_counts_steps_across_executions(capsys):
    model = make(steps_per_execution=2)
    watch = callbacks.RankHistory(verbose=1, freq=3)
    fit(model, watch, epochs=2)
    assert watch.steps == [4, 6]  # the executions that complete steps 3 and 6
    assert capsys.readouterr().out.startswith("ranks after step 4: body/low ")


def test_rank_history_as_a_data_frame():
    pytest.importorskip("pandas")
    watch = callbacks.RankHistory()
    fit(make(), watch)
    frame = watch.to_dataframe()
    assert list(frame.columns) == ["epoch", "step", "body/low", "low"]
    assert frame["low"].tolist() == watch.ranks["low"] and frame["step"].tolist() == [4, 8]


def test_missing_packages_are_named(monkeypatch):
    watch = callbacks.RankHistory()
    watch.epochs = [0]
    for module in ("pandas", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="needs pandas"):
        watch.to_dataframe()
    with pytest.raises(ImportError, match="Plots need matplotlib"):
        callbacks.plot_ranks(watch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs the package tensorboard"):
        callbacks.TensorBoard()


@pytest.mark.parametrize("freq", [0, "batch", 1.5])
def test_rank_history_refuses_a_frequency(freq):
    with pytest.raises(ValueError, match="`freq` must be 'epoch' or a positive number of steps"):
        callbacks.RankHistory(freq=freq)


# Compression in the logs.


@pytest.mark.parametrize(
    "way", partly_slow([{"steps_per_execution": 4}], [{"run_eagerly": False}, {}])
)
def test_compression_is_in_all_logs_whatever_the_order(way, capsys):
    model, seen = make(**way), Seen()
    stop = keras.callbacks.EarlyStopping("compression", mode="max", patience=1, min_delta=1)
    # The callbacks that read come before the one that adds, the progress bar after it.
    history = fit(
        model,
        seen,
        stop,
        callbacks.CompressionLogger(ranks=True),
        callbacks.FreezeRanks(epoch=1),  # makes the train function anew in the midst of it
        epochs=9,
        verbose=1,
        validation_data=(X, Y),
    )
    assert len(history["compression"]) == 2 < 9  # stopped: no epoch gains all of the weights
    for logs, ranks in zip(seen.batches, seen.ranks, strict=True):
        assert logs.keys() == {"loss", "mae", "compression", "rank_low", "rank_body/low"}
        assert (logs["rank_low"], logs["rank_body/low"]) == (ranks["low"], ranks["body/low"])
    compression = model.compression()
    assert history["compression"][-1] == compression.saved(compression.factored)
    assert seen.epochs[-1]["compression"] == history["compression"][-1]
    assert {"loss", "mae", "val_loss", "val_mae"} <= history.keys()
    assert "val_compression" not in history
    assert "compression: " in capsys.readouterr().out
    # Nothing stays behind.
    assert np.ndim(model.train_on_batch(X, Y, return_dict=True)["loss"]) == 0
    assert fit(model, epochs=1).keys() == {"loss", "mae"}


def test_compression_logger_leaves_nothing_behind_after_an_error():
    model = make()
    bad = X.copy()
    bad[9] = np.nan
    with pytest.raises(FloatingPointError):
        model.fit(bad, Y, 4, shuffle=False, verbose=0, callbacks=[callbacks.CompressionLogger()])
    assert model.train_on_batch(X, Y, return_dict=True).keys() == {"loss", "mae"}


def test_model_checkpoint_can_follow_the_compression(tmp_path):
    path = str(tmp_path / "{epoch}-{compression:.3f}.keras")
    save = keras.callbacks.ModelCheckpoint(path)
    history = fit(make(), save, callbacks.CompressionLogger(), epochs=1)
    assert [p.name for p in tmp_path.iterdir()] == [f"1-{history['compression'][0]:.3f}.keras"]


# FreezeRanks.


def test_ranks_are_frozen_when_they_have_settled(capsys):
    model = make(truncation=0.0, integrator="fixed_rank")
    watch = Seen()
    fit(model, watch, callbacks.FreezeRanks(patience=2, verbose=1), epochs=3)
    assert model.ranks_frozen
    assert capsys.readouterr().out == "epoch 2: ranks frozen at body/low 3, low 5\n"


def test_ranks_that_move_are_not_frozen():
    class Moves(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            other = make()
            other.layers[2].set_weights([np.eye(6, 1 + epoch % 2), np.eye(1 + epoch % 2),
                                         np.eye(6, 1 + epoch % 2), np.zeros(6)])  # fmt: skip
            self.model.get_layer("low").set_weights(other.get_layer("low").get_weights())

    model = make(truncation=0.0, integrator="fixed_rank")
    fit(model, Moves(), callbacks.FreezeRanks(patience=1), epochs=3)
    assert not model.ranks_frozen


def test_ranks_are_frozen_at_an_epoch_and_stay():
    model, seen = make(), Seen()
    fit(model, seen, callbacks.FreezeRanks(epoch=1), epochs=3)
    assert model.ranks_frozen
    assert seen.ranks[4:] == [seen.ranks[3]] * 8 != [seen.ranks[0]] * 8


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({}, "needs `patience` or `epoch`"),
        ({"patience": 0}, "`patience` must be an integer of at least 1. Received: patience=0"),
        ({"epoch": -1}, "`epoch` must be an integer of at least 0. Received: epoch=-1"),
    ],
)
def test_freeze_ranks_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        callbacks.FreezeRanks(**arguments)


# TensorBoard.


def summaries(folder):
    """`{tag: {step: tensor}}` of all event files."""
    found = {}
    for path in folder.rglob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor)
    return found


@pytest.fixture
def summary_writers(monkeypatch):
    """Where tensorboard is not installed, TensorFlow's plain writer under its names."""
    if importlib.util.find_spec("tensorboard") is not None:
        return

    def write(name, data, step=None, buckets=None, description=None):
        return tf.summary.write(name, tf.cast(data, tf.float32), step=step)

    package, summary, v2 = (types.ModuleType(name) for name in ("tensorboard", "summary", "v2"))
    v2.scalar = v2.histogram = write
    package.__spec__ = importlib.util.spec_from_loader("tensorboard", None)
    for name, module in {"": package, ".summary": summary, ".summary.v2": v2}.items():
        monkeypatch.setitem(sys.modules, f"tensorboard{name}", module)


def test_tensorboard_gets_ranks_compression_and_spectra(tmp_path, summary_writers):
    model, watch = make(), callbacks.RankHistory()
    board = callbacks.TensorBoard(tmp_path, histogram_freq=2)
    assert isinstance(board, keras.callbacks.TensorBoard)
    fit(model, watch, board, epochs=3)
    found = summaries(tmp_path)
    assert {"epoch_loss", "epoch_mae", "epoch_learning_rate"} <= found.keys()
    for path, ranks in watch.ranks.items():
        assert [float(found[f"rank/{path}"][epoch]) for epoch in range(3)] == ranks
        assert sorted(found[f"singular_values/{path}"]) == [0, 2]
    compression = model.compression()
    for name in ("factored", "deployed", "training"):
        value = float(found[f"compression/{name}"][2])
        assert value == pytest.approx(compression.saved(getattr(compression, name)))


# Plots.


def test_plots_draw_what_was_recorded(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    model, watch = make(), callbacks.RankHistory()
    with pytest.raises(ValueError, match="Received: an empty history"):
        callbacks.plot_ranks(watch)
    fit(model, watch, epochs=3)
    ax = callbacks.plot_ranks(watch)
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines) == ["body/low", "low"]
    np.testing.assert_array_equal(lines["low"].get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(lines["low"].get_ydata(), watch.ranks["low"])
    ax = callbacks.plot_spectrum(model, layers=["low"], ax=matplotlib.figure.Figure().subplots())
    (line,) = ax.get_lines()
    kernel = np.linalg.svd(model.get_layer("low").kernel.numpy(), compute_uv=False)
    np.testing.assert_allclose(line.get_ydata(), kernel[: model.ranks["low"]], rtol=1e-4)
    ax.figure.savefig(tmp_path / "spectrum.png")
    with pytest.raises(ValueError, match="must be paths of built low-rank layers.*'high'"):
        callbacks.plot_spectrum(model, layers=["high"])


def test_singular_values_of_factors_that_are_not_orthonormal():
    layer = LowRankDense(5, rank=3)
    layer.build((None, 4))
    layer.U.assign(rng.standard_normal((4, 3)))
    layer.S.assign(rng.standard_normal((3, 3)))
    expected = np.linalg.svd(layer.kernel.numpy(), compute_uv=False)[:3]
    np.testing.assert_allclose(layer.factors.singular_values(), expected, rtol=1e-5)


# The summary.


def test_summary_tells_rank_and_compression_of_every_layer(capsys):
    model = make()
    lines = []
    model.summary(80, print_fn=lambda text, **_: lines.extend(text.splitlines()))
    rows = {line.split()[0]: line.split()[1:] for line in lines if "%" in line}
    assert rows["body/low"] == ["6", "x", "6", "3", "36", "0.00%"]
    assert rows["low"] == ["6", "x", "6", "5", "60", "-66.67%"]
    compression = model.compression()
    assert rows["all"][-1] == f"{compression.saved(compression.factored):.2%}"
    model.summary()
    out = capsys.readouterr().out
    assert "Layer (type)" in out and "body/low" in out


def test_summary_of_a_model_that_is_not_built_is_keras_s():
    class Subclassed(LowRankModel):
        def __init__(self):
            super().__init__()
            self.low = LowRankDense(3)

    lines = []
    Subclassed().summary(print_fn=lambda text, **_: lines.append(text))
    assert "unbuilt" in "".join(lines) and "Saved" not in "".join(lines)


@pytest.mark.parametrize("kind", ["RankHistory", "CompressionLogger", "FreezeRanks"])
def test_a_callback_that_reads_ranks_refuses_a_model_without(kind):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, LowRankDense(3, rank=2)(inputs))
    model.compile("sgd", "mse")
    watch = getattr(callbacks, kind)(**({"epoch": 1} if kind == "FreezeRanks" else {}))
    with pytest.raises(ValueError, match=rf"`{kind}` needs a `LowRankModel`.*Functional"):
        fit(model, watch)


def test_a_plot_of_ranks_refuses_what_is_no_history():
    with pytest.raises(ValueError, match="must be a `RankHistory`.*LowRankModel"):
        callbacks.plot_ranks(make())
