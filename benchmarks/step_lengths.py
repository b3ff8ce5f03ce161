"""How large is an update with Adam beside Keras's, also with unused rows?

The norm of a kernel's update, low-rank over plain Keras, each in its own training at Keras's
default learning rate: a bag of words with 40 used words, an embedding, and digits (64-512-512-10,
the second layer). `unused` is the norm of the change of rows without a gradient.

    python benchmarks/step_lengths.py
    python benchmarks/step_lengths.py --optimizer RMSprop
"""

import keras
import numpy as np
import reporting
import sklearn.datasets
from absl import flags

import keras_lowrank

OPTIMIZER = flags.DEFINE_enum("optimizer", "Adam", ["Adam", "RMSprop"], "By its name in Keras.")
STEPS = flags.DEFINE_integer("steps", 100, "Steps of a training.", lower_bound=1)


def bag_of_words(count, rng):
    used = rng.permutation(count)[:40]
    target = rng.standard_normal((40, 64)).astype("float32")
    batches = []
    for _ in range(STEPS.value):
        x = np.zeros((64, count), "float32")
        x[:, used] = rng.random((64, 40)) < 0.3
        batches.append((x, x[:, used] @ target))

    def network(low_rank):
        inputs = keras.Input((count,))
        layer = (
            keras_lowrank.LowRankDense(64, rank=16, use_bias=False)
            if low_rank
            else keras.layers.Dense(64, use_bias=False)
        )
        return inputs, layer(inputs), layer

    return batches, network, "mse", np.setdiff1d(np.arange(count), used)


def embedding(count, rng):
    used = rng.permutation(count)[:1000]
    table = rng.standard_normal((count, 32)).astype("float32")
    batches = []
    for _ in range(STEPS.value):
        x = rng.permutation(used)[:640].reshape(32, 20)
        batches.append((x, table[x].mean(1)))

    def network(low_rank):
        inputs = keras.Input((20,), dtype="int32")
        layer = (
            keras_lowrank.LowRankEmbedding(count, 32, rank=8)
            if low_rank
            else keras.layers.Embedding(count, 32)
        )
        pooled = keras.layers.GlobalAveragePooling1D()(layer(inputs))
        return inputs, keras.layers.Dense(32)(pooled), layer

    return batches, network, "mse", np.setdiff1d(np.arange(count), used)


def digits(count, rng):
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    chosen = rng.integers(0, len(labels), (STEPS.value, 32))
    batches = [(images[rows].astype("float32") / 16, labels[rows]) for rows in chosen]

    def network(low_rank):
        def layer():
            if low_rank:
                return keras_lowrank.LowRankDense(count, rank=64, activation="relu")
            return keras.layers.Dense(count, activation="relu")

        inputs, second = keras.Input((64,)), layer()
        outputs = keras.layers.Dense(10, activation="softmax")(second(layer()(inputs)))
        return inputs, outputs, second

    return batches, network, "sparse_categorical_crossentropy", []


def lengths(batches, network, loss, unused, low_rank):
    """The norm of every update, and that of the total change of the unused rows."""
    keras.utils.set_random_seed(0)
    inputs, outputs, layer = network(low_rank)
    model = (keras_lowrank.LowRankModel if low_rank else keras.Model)(inputs, outputs)
    model.compile(getattr(keras.optimizers, OPTIMIZER.value)(), loss)

    def kernel():
        table = layer.embeddings if hasattr(layer, "embeddings") else layer.kernel
        return keras.ops.convert_to_numpy(table)

    start = present = kernel()
    found = []
    for batch in batches:
        model.train_on_batch(*batch)
        before, present = present, kernel()
        found.append(np.linalg.norm(present - before))
    return np.array(found), np.linalg.norm((present - start)[unused])


def main(_):
    rows, at = [], [step for step in (1, 10, 50, 100) if step <= STEPS.value]
    for name, make, count in (
        ("bag of words, 2000 x 64", bag_of_words, 2000),
        ("bag of words, 200 x 64", bag_of_words, 200),
        ("embedding, 20,000 x 32, 1,000 in use", embedding, 20_000),
        ("digits, 512 x 512", digits, 512),
    ):
        case = make(count, np.random.default_rng(0))
        (ours, moved), (plain, _) = (lengths(*case, low_rank) for low_rank in (True, False))
        ratios = {f"step_{step}": float(ours[step - 1] / plain[step - 1]) for step in at}
        rows.append({"of": name, **ratios, "unused": float(moved)})
    columns = {"of": "{}", **dict.fromkeys((f"step_{step}" for step in at), "{:.2f}")}
    title = f"Lengths of steps by {OPTIMIZER.value}, low-rank over Keras"
    reporting.report("step_lengths", title, rows, {**columns, "unused": "{:.2f}"})


if __name__ == "__main__":
    reporting.run(main)
