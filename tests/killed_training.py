"""A small training that a test kills: `python killed_training.py FOLDER [SAVE_FREQ]`.

It trains with a backup in `FOLDER/backup` and then writes its final weights and its last logs to
`FOLDER/final.npz`.
"""

import pathlib
import sys

import keras
import numpy as np

import keras_lowrank
from keras_lowrank.callbacks.atomic_file import write_atomically

EPOCHS, BATCH_SIZE = 12, 8


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


def make():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras_lowrank.LowRankDense(24, rank=4, activation="tanh", name="low")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.2)(x)
    x = keras_lowrank.LowRankDense(16, rank=6, activation="tanh", name="second")(x)
    model = keras_lowrank.LowRankModel(inputs, keras.layers.Dense(3)(x))
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], truncation=0.15)
    return model


def train(folder, save_freq, *callbacks, **kwargs):
    """Trains to the end; returns the model and its history."""
    model = make()
    backup = keras_lowrank.callbacks.BackupAndRestore(folder / "backup", save_freq, **kwargs)
    history = model.fit(
        Shuffled(model), epochs=EPOCHS, verbose=0, callbacks=[*callbacks, backup]
    ).history
    return model, history


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    save_freq = int(sys.argv[2]) if len(sys.argv) > 2 else "epoch"
    model, history = train(folder, save_freq)
    logs = [values[-1] for _, values in sorted(history.items())]
    arrays = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    write_atomically(folder / "final.npz", lambda file: np.savez(file, *arrays, np.array(logs)))
