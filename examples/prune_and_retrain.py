"""Prunes a trained network with an SVD, retrains it low-rank, and compares with scratch.

The pruning experiment of "Low-rank lottery tickets" (arXiv:2205.13571) on MNIST. A fully connected
network 784-784-784-784-784-10 is trained at full rank and truncated to rank r, which destroys its
accuracy at small r. A few epochs of training at rank r restore it.

    python examples/prune_and_retrain.py                 # ranks 5 to 100
    python examples/prune_and_retrain.py --ranks 20,50 --retrain_epochs 1
    python examples/prune_and_retrain.py --nofrom_scratch
    python examples/prune_and_retrain.py --data_aware    # truncate by the layers' outputs

Writes out/prune_and_retrain/prune_and_retrain.json and .csv (the table).
"""

import pathlib

import keras
from absl import flags

import image_data
import results
from keras_lowrank import KeepRank, LowRankDense, LowRankModel, from_keras

_DEPTH = 4

RANKS = flags.DEFINE_list(
    "ranks", ["5", "10", "20", "30", "50", "100"], "Ranks to cut to, separated by commas."
)
flags.register_validator(
    RANKS,
    lambda values: bool(values) and all(value.isdigit() and int(value) > 0 for value in values),
    "must be positive integers, separated by commas",
)
WIDTH = flags.DEFINE_integer("width", 784, "Neurons of every hidden layer.", lower_bound=1)
EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs at full rank.", lower_bound=1)
RETRAIN_EPOCHS = flags.DEFINE_integer("retrain_epochs", 3, "Epochs after the cut.", lower_bound=1)
FROM_SCRATCH = flags.DEFINE_bool(
    "from_scratch", True, "Also train at each rank from the start, for the epochs of both together."
)
DATA_AWARE = flags.DEFINE_bool(
    "data_aware", False, "Cut by the error of the layers' outputs on 10,000 training images."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images in a batch.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 0.05, "Learning rate of SGD, at the start of a cosine.", lower_bound=0.0
)
MOMENTUM = flags.DEFINE_float("momentum", 0.9, "Momentum of SGD.", 0.0, 1.0)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and of the order of the images.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "out/prune_and_retrain", "Folder for the files.")
flags.adopt_module_key_flags(image_data)


def load():
    """Returns training and test data, `((images, labels), (images, labels))`, images in [0, 1]."""
    splits = image_data.load("mnist")
    return [
        (split.images.reshape(-1, 784).astype("float32") / 255.0, split.labels) for split in splits
    ]


def full_rank():
    inputs = x = keras.Input((784,))
    for _ in range(_DEPTH):
        x = keras.layers.Dense(WIDTH.value, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def low_rank(rank):
    inputs = x = keras.Input((784,))
    for _ in range(_DEPTH):
        x = LowRankDense(WIDTH.value, rank=rank, activation="relu")(x)
    return LowRankModel(inputs, keras.layers.Dense(10)(x))


def train(model, data, epochs, name):
    """Trains at fixed ranks, with a learning rate that falls to 0."""
    low = {"truncation": KeepRank()} if isinstance(model, LowRankModel) else {}
    steps = epochs * -(-len(data[1]) // BATCH_SIZE.value)
    schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE.value, steps)
    model.compile(
        keras.optimizers.SGD(schedule, momentum=MOMENTUM.value),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **low,
    )
    bar = results.progress_bar(name, len(data[1]), BATCH_SIZE.value)
    model.fit(*data, batch_size=BATCH_SIZE.value, epochs=epochs, verbose=0, callbacks=[bar])
    return model


def accuracy(model, data):
    """The accuracy on `data`, in percent."""
    if not model.compiled:
        model.compile(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
        )
    return 100.0 * model.evaluate(*data, batch_size=1000, verbose=0)[1]


def run(rank, original, train_data, test_data):
    """One row of the table."""
    inputs = train_data[0][:10_000] if DATA_AWARE.value else None
    pruned = from_keras(original, rank=rank, exclude=original.layers[-1].name, data=inputs)
    row = {"rank": rank, **_weights(pruned), "cut": accuracy(pruned, test_data)}
    train(pruned, train_data, RETRAIN_EPOCHS.value, f"rank {rank}, retrain")
    row["retrained"] = accuracy(pruned, test_data)
    if FROM_SCRATCH.value:
        keras.utils.set_random_seed(SEED.value)
        epochs = EPOCHS.value + RETRAIN_EPOCHS.value
        scratch = train(low_rank(rank), train_data, epochs, f"rank {rank}")
        row["from_scratch"] = accuracy(scratch, test_data)
    return row


def main(_):
    train_data, test_data = load()
    keras.utils.set_random_seed(SEED.value)
    original = train(full_rank(), train_data, EPOCHS.value, "full rank")
    full = accuracy(original, test_data)
    folder, rows = pathlib.Path(OUTPUT_DIR.value), []
    for rank in map(int, RANKS.value):
        rows.append(run(rank, original, train_data, test_data))
        report = {"settings": _settings(), "versions": results.versions()}
        report.update(full_rank_accuracy=full, rows=rows)
        first = len(rows) == 1
        results.write_json(folder / "prune_and_retrain.json", report, first)
        results.write_csv(folder / "prune_and_retrain.csv", rows, first)
    _print(full, rows)


def _weights(model):
    count = model.compression()
    return {"weights": count.factored, "compression": round(count.saved(count.factored), 4)}


def _settings():
    names = (
        "width",
        "epochs",
        "retrain_epochs",
        "data_aware",
        "batch_size",
        "learning_rate",
        "momentum",
    )
    return {name: flags.FLAGS[name].value for name in (*names, "seed")}


def _print(full, rows):
    header = ["rank", "weights", "saved", "after the cut"]
    header.append(f"retrained {RETRAIN_EPOCHS.value} epochs")
    header += [f"from scratch, {EPOCHS.value + RETRAIN_EPOCHS.value}"] * FROM_SCRATCH.value
    cells = [
        [str(row["rank"]), f"{row['weights']:,}", f"{row['compression']:.1%}"]
        + [f"{row[key]:.2f}%" for key in ("cut", "retrained", "from_scratch") if key in row]
        for row in rows
    ]
    title = f"784{f'-{WIDTH.value}' * _DEPTH}-10 on MNIST, full rank {full:.2f}%"
    results.print_table(title, header, cells)


if __name__ == "__main__":
    results.run(main)
