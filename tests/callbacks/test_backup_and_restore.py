"""Training that is stopped at any moment ends as if it had not been."""

import pathlib
import random
import subprocess
import sys

import keras
import killed_training
import numpy as np
import pytest
from reference.cases import partly_slow

from keras_lowrank import LowRankDense, LowRankModel, callbacks
from keras_lowrank.callbacks.training_state import TrainingState
from keras_lowrank.files.atomic_file import write_atomically

PROGRAM = pathlib.Path(killed_training.__file__)


class Stop(keras.callbacks.Callback):
    """Interrupts training at a batch, counted over all epochs."""

    def __init__(self, batch):
        super().__init__()
        self.left = batch

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left <= 0:
            raise KeyboardInterrupt


def interrupted(folder, save_freq, at, *arguments, **kwargs):
    keras.utils.clear_session(free_memory=False)
    with pytest.raises(KeyboardInterrupt):
        killed_training.train(folder, save_freq, 4, [Stop(at)], *arguments, **kwargs)


def resumed(folder, save_freq, *arguments, **kwargs):
    keras.utils.clear_session(free_memory=False)
    random.random(), np.random.random()  # a new process does not start where the old one was
    return killed_training.train(folder, save_freq, 4, *arguments, **kwargs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    keras.utils.clear_session(free_memory=False)
    model, history = killed_training.train(tmp_path_factory.mktemp("undisturbed"), "epoch", 4)
    assert model.ranks != {"low": 4, "second": 12}  # ranks that moved are put to the test
    return killed_training.everything(model), history


@pytest.mark.parametrize(
    "save_freq, stops, way",
    partly_slow(
        [(3, [5, 23], {})],  # in the midst of the first epoch, then of the third
        [("epoch", [13], {}), (2, [12], {"steps_per_execution": 2})],
    ),
)
def test_goes_on_bit_for_bit(save_freq, stops, way, undisturbed, tmp_path):
    arrays, whole = undisturbed
    for stop in stops:
        interrupted(tmp_path, save_freq, stop // way.get("steps_per_execution", 1), **way)
    model, history = resumed(tmp_path, save_freq, **way)
    ours = killed_training.everything(model)
    assert len(history["loss"]) < 4  # it did not begin anew
    if way:  # another graph, whose roundings need not be the same
        other, whole = resumed(tmp_path / "undisturbed", save_freq, **way)
        arrays = killed_training.everything(other)
    for one, other in zip(ours, arrays, strict=True):
        np.testing.assert_array_equal(one, other)
    for name, values in history.items():  # metrics of the epoch that was interrupted, too
        assert values == whole[name][-len(values) :]
    assert not (tmp_path / "backup").exists()
    # A later `fit` of the same model starts where it is told to.
    assert model.fit(killed_training.Shuffled(model), epochs=1, verbose=0).epoch == [0]


def test_frozen_ranks_and_global_random_states_come_back(tmp_path):
    model = killed_training.make()
    random.seed(3), np.random.seed(4), random.gauss(0, 1), np.random.normal()
    keras.random.normal((2,))
    before = keras.src.random.seed_generator.global_seed_generator().state.numpy()
    model.freeze_ranks()
    state = callbacks.backup_and_restore.TrainingState.of(
        model, 1, 0, callbacks.backup_and_restore.host_random_state()
    )
    expected = random.gauss(0, 1), random.random(), np.random.normal(), np.random.random()
    write_atomically(tmp_path / "state.npz", state.write)
    other = killed_training.make()
    keras.random.normal((2,))
    assert not other.ranks_frozen
    TrainingState.read(tmp_path / "state.npz").restore(other)
    assert other.ranks_frozen
    got = random.gauss(0, 1), random.random(), np.random.normal(), np.random.random()
    assert got == expected
    # The generator itself is another one: `make` has begun a new session.
    seed = keras.src.random.seed_generator.global_seed_generator().state
    np.testing.assert_array_equal(seed.numpy(), before)


def test_bfloat16_and_ranks_survive_the_file(tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    inputs = keras.Input((6,))
    model = LowRankModel(inputs, keras.layers.Dense(3)(LowRankDense(6, rank=3)(inputs)))
    model.compile("adam", "mse")
    model.layers[1].set_weights([np.eye(6, 2), np.eye(2), np.eye(6, 2), np.full(6, 0.1)])
    before = killed_training.everything(model)
    write_atomically(tmp_path / "state.npz", TrainingState.of(model, 1, 0, []).write)
    state = TrainingState.read(tmp_path / "state.npz")
    model.layers[1].set_weights([np.eye(6, 3), np.eye(3), np.eye(6, 3), np.zeros(6)])
    state.values["random"] = callbacks.backup_and_restore.host_random_state()
    state.restore(model)
    assert list(model.ranks.values()) == [2]
    for one, other in zip(killed_training.everything(model), before, strict=True):
        np.testing.assert_array_equal(one, other)


# Files.


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    write_atomically(path, lambda file: file.write(b"new"), keep_as=path.with_name("before"))
    assert path.read_bytes() == b"new" and path.with_name("before").read_bytes() == b"old"


def test_a_damaged_state_gives_way_to_the_one_before_or_raises(tmp_path):
    interrupted(tmp_path, 4, 20, {"double_checkpoint": True})
    folder = tmp_path / "backup"
    good = (folder / "state.npz").read_bytes()
    assert TrainingState.read(folder / "before.npz").position["batch"] == 4
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    (folder / "state.npz").write_bytes(damaged)
    with pytest.warns(UserWarning, match="cannot be read .* continues from the previous one"):
        _, history = resumed(tmp_path, 4, backup={"delete_checkpoint": False})
    assert len(history["loss"]) == 3
    (folder / "before.npz").unlink()
    for contents in (b"", good[: len(good) // 2], bytes(damaged), b"x" * 100):
        (folder / "state.npz").write_bytes(contents)
        with pytest.raises(OSError, match="cannot be read. Delete the folder to restart the"):
            resumed(tmp_path, 4)


# Errors.


def test_state_of_another_model_raises_and_changes_nothing(tmp_path):
    interrupted(tmp_path, 4, 6, run_eagerly=True)
    inputs = keras.Input((6,))
    model = LowRankModel(inputs, LowRankDense(3, rank=2)(inputs))
    model.compile("sgd", "mse")
    before = killed_training.everything(model)
    backup = callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(ValueError, match="must be the same model, compiled in the same"):
        model.fit(np.ones((4, 6)), np.ones((4, 3)), verbose=0, callbacks=[backup])
    for one, other in zip(killed_training.everything(model), before, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="`steps_per_execution` must divide .*: 4"):
        resumed(tmp_path, 4, steps_per_execution=3)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("gs://bucket/folder",), "must be a local folder"),
        (("folder", 0), "`save_freq` must be 'epoch' or a positive number of batches"),
        (("folder", False), "`save_freq` must be 'epoch' or a positive number of batches"),
        (("folder", "batch"), "`save_freq`"),
        (("",), "`backup_dir`"),
    ],
)
def test_arguments_out_of_range_raise(arguments, words):
    with pytest.raises(ValueError, match=words):
        callbacks.BackupAndRestore(*arguments)


def test_an_unbuilt_model_raises(tmp_path):
    class Subclassed(LowRankModel):
        def __init__(self):
            super().__init__()
            self.low = LowRankDense(3)

        def call(self, inputs):
            return self.low(inputs)

    model = Subclassed()
    model.compile("sgd", "mse")
    backup = callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(ValueError, match="needs a model that is built before `fit`"):
        model.fit(np.ones((4, 6)), np.ones((4, 3)), verbose=0, callbacks=[backup])
    model(np.ones((4, 6)))  # built after `compile`: the optimizer is not, yet
    model.fit(np.ones((4, 6)), np.ones((4, 3)), verbose=0, callbacks=[backup])


# Kills.


@pytest.mark.slow
def test_survives_thirty_kills_at_random_times(tmp_path):
    arguments = [sys.executable, PROGRAM, tmp_path, "30", "100", "1"]  # kills, epochs, seed
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    print(run.stdout)


def test_a_fit_after_one_that_had_nothing_left_to_do_begins_at_its_beginning(tmp_path):
    def fitted(model, **arguments):
        return model.fit(np.ones((8, 8)), np.ones((8, 8)), verbose=0, **arguments).epoch

    for expected in ([0, 1], []):
        inputs = keras.Input((8,))
        model = LowRankModel(inputs, LowRankDense(8, rank=3)(inputs))
        model.compile("sgd", "mse")
        backup = callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        assert fitted(model, epochs=2, callbacks=[backup]) == expected
    assert fitted(model, epochs=3) == [0, 1, 2]
