"""How good is a first `fit` after changing only the class names?

Plain Keras beside low-rank layers with their defaults (starting rank, integrator, tolerance), on
MNIST with 4 x 784 and 4 x 2048 dense layers and with LeNet5, and on scikit-learn's digits. Batches
of 32, Keras's default. The table has test accuracy, seconds of the whole `fit`, and weights saved.

    python benchmarks/first_fit.py --network digits,mlp784 --optimizer momentum,adam
"""

import time

import keras
import numpy as np
import reporting
import sklearn.datasets
import tensorflow_datasets as tfds
from absl import flags
from keras import layers

from keras_lowrank import LowRankConv2D, LowRankDense, LowRankModel

_OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "adam": keras.optimizers.Adam,
}
_NETWORKS = ["digits", "mlp784", "mlp2048", "lenet5"]
NETWORKS = flags.DEFINE_list("network", _NETWORKS, "What to train.")
OPTIMIZERS = flags.DEFINE_list("optimizer", list(_OPTIMIZERS), "At Keras's own rates.")
EPOCHS = flags.DEFINE_integer("epochs", 5, "Epochs.", lower_bound=1)


def data(name):
    """`((images, labels), (test images, test labels))`, pixels from 0 to 1."""
    if name == "digits":
        images, labels = sklearn.datasets.load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(labels))
        images, labels = images[order].astype("float32") / 16, labels[order]
        return (images[:1300], labels[:1300]), (images[1300:], labels[1300:])
    sets = tfds.as_numpy(tfds.load("mnist", batch_size=-1, split=["train", "test"]))
    return [(one["image"].astype("float32") / 255, one["label"]) for one in sets]


def network(name, low_rank):
    """A model of plain layers, or of low-rank ones."""
    dense = LowRankDense if low_rank else layers.Dense
    conv = LowRankConv2D if low_rank else layers.Conv2D
    inputs = x = keras.Input((64,) if name == "digits" else (28, 28, 1))
    if name == "lenet5":
        for filters in (20, 50):
            x = layers.MaxPooling2D()(conv(filters, 5, activation="relu")(x))
        x = dense(500, activation="relu")(layers.Flatten()(x))
    else:
        x = layers.Flatten()(x)
        for _ in range(2 if name == "digits" else 4):
            x = dense(512 if name == "digits" else int(name[3:]), activation="relu")(x)
    return (LowRankModel if low_rank else keras.Model)(inputs, layers.Dense(10)(x))


def fitted(name, optimizer, low_rank, train, test):
    """Trains a model; returns `(accuracy, seconds, model)`."""
    keras.utils.set_random_seed(0)
    model = network(name, low_rank)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(_OPTIMIZERS[optimizer](), loss, metrics=["accuracy"])
    start = time.perf_counter()
    model.fit(*train, epochs=EPOCHS.value, verbose=0)
    seconds = time.perf_counter() - start
    return model.evaluate(*test, verbose=0)[1], seconds, model


def main(_):
    rows = []
    for name in NETWORKS.value:
        train, test = data(name)
        for optimizer in OPTIMIZERS.value:
            plain, full_seconds, _ = fitted(name, optimizer, False, train, test)
            accuracy, seconds, model = fitted(name, optimizer, True, train, test)
            count = model.compression()
            row = {"network": name, "optimizer": optimizer}
            row |= {"full_rank": 100 * plain, "low_rank": 100 * accuracy}
            row |= {"seconds": seconds, "time_ratio": seconds / full_seconds}
            row |= {"saved": 100 * (1 - count.factored / count.full)}
            rows.append({**row, "ranks": str(list(model.ranks.values()))})
            print(rows[-1], flush=True)
    columns = dict.fromkeys(("network", "optimizer"), "{}")
    columns |= dict.fromkeys(("full_rank", "low_rank"), "{:.2f}%")
    columns |= {"seconds": "{:.0f}", "time_ratio": "{:.2f}", "saved": "{:.1f}%", "ranks": "{}"}
    title = "A first fit, by the defaults"
    reporting.report("first_fit", title, rows, columns, epochs=EPOCHS.value)


if __name__ == "__main__":
    reporting.run(main)
