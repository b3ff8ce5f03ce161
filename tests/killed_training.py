"""A small training with a backup, in processes of its own that a test may kill.

Run as a program, `python killed_training.py FOLDER KILLS EPOCHS SEED`, it trains once undisturbed,
and once killed so many times; it prints the number of kills, and fails unless both end alike.
"""

import os
import pathlib
import random
import signal
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_lowrank
from keras_lowrank.callbacks.training_state import TrainingState
from keras_lowrank.files.atomic_file import write_atomically

BATCH_SIZE = 8


class Shuffled(keras.utils.PyDataset):
    """Batches in an order that depends on the epoch alone."""

    def __init__(self, model):
        super().__init__()
        rng = np.random.default_rng(0)
        self.model = model
        self.x = rng.standard_normal((64, 6)).astype("float32")
        self.y = np.tanh(self.x @ rng.standard_normal((6, 3))).astype("float32")
        self.on_epoch_begin()  # Keras looks at a batch before the first epoch begins

    def __len__(self):
        return len(self.x) // BATCH_SIZE

    def on_epoch_begin(self):
        epoch = int(self.model.optimizer.iterations) // len(self)
        self.order = np.random.default_rng(epoch).permutation(len(self.x))

    def __getitem__(self, index):
        chosen = self.order[BATCH_SIZE * index :][:BATCH_SIZE]
        return self.x[chosen], self.y[chosen]


def make(**compile_arguments):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras_lowrank.LowRankDense(24, rank=4, activation="tanh", name="low")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.2)(x)
    x = keras_lowrank.LowRankDense(16, rank=12, activation="tanh", name="second")(x)
    model = keras_lowrank.LowRankModel(inputs, keras.layers.Dense(3)(x))
    arguments = {"metrics": ["mae"], "truncation": 0.3, **compile_arguments}
    model.compile(keras.optimizers.Adam(0.01), "mse", **arguments)
    return model


def train(folder, save_freq, epochs, callbacks=(), backup=None, **compile_arguments):
    """Trains to the end; returns the model and its history."""
    model = make(**compile_arguments)
    backup = keras_lowrank.callbacks.BackupAndRestore(folder / "backup", save_freq, **backup or {})
    callbacks = [*callbacks, backup]
    history = model.fit(Shuffled(model), epochs=epochs, verbose=0, callbacks=callbacks).history
    return model, history


def everything(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def in_a_process(folder, epochs):
    """Starts the training in a new process, which writes `FOLDER/final.npz`; returns its id."""
    folder.mkdir(parents=True, exist_ok=True)
    process = os.fork()  # before TensorFlow has started a thread: spares its import
    if process:
        return process
    model, history = train(folder, 1, epochs)
    logs = np.array([history["loss"][-1], history["mae"][-1]])
    arrays = [*everything(model), logs]
    write_atomically(folder / "final.npz", lambda file: np.savez(file, *arrays))
    os._exit(0)


def killed(folder, kills, epochs, seed):
    """Trains, killed at random times; returns how often it was killed in the midst of writing."""
    rng, state, writing = random.Random(seed), folder / "backup" / "state.npz", 0
    for kill in range(kills):
        process, started = in_a_process(folder, epochs), time.time_ns()
        # The first kill comes before there is any state; a later one once there is a new one.
        while kill and (not state.exists() or state.stat().st_mtime_ns < started):
            time.sleep(0.001)
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "ended by itself: train for longer"
        time.sleep(rng.uniform(0, 0.1))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status), "ended by itself: train for longer"
        writing += state.with_name("state.npz.part").exists()
        if kill:
            TrainingState.read(state)  # whole, whatever was being written
    assert os.waitpid(in_a_process(folder, epochs), 0)[1] == 0
    return writing


if __name__ == "__main__":
    base = pathlib.Path(sys.argv[1])
    kills, epochs, seed = map(int, sys.argv[2:])
    assert os.waitpid(in_a_process(base / "undisturbed", epochs), 0)[1] == 0
    writing = killed(base / "killed", kills, epochs, seed)
    ends = [np.load(base / name / "final.npz") for name in ("undisturbed", "killed")]
    assert ends[0].files == ends[1].files
    for name in ends[0].files:
        np.testing.assert_array_equal(ends[0][name], ends[1][name])
    print(f"{kills} kills, {writing} of them amid writing, {len(ends[0].files)} arrays equal")
