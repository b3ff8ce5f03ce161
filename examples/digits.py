"""The demo: one network on handwritten digits, at full rank and low-rank.

The data are the 1,797 digits of scikit-learn, so nothing is downloaded. Both convolutional networks
are trained in the same way. A table compares them, a plot shows ranks and accuracy over the epochs,
and both are exported as SavedModel and TFLite, with a check of every file.

    python examples/digits.py                              # about a minute on two cores
    python examples/digits.py --tolerance 0.15             # higher ranks
    python examples/digits.py --save_to saved_models/digits/1

Writes to ./out/digits, lists the files at the end, and replaces those of an earlier run.
"""

import pathlib

import keras
from absl import flags
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import results
from keras_lowrank import LowRankConv2D, LowRankDense, LowRankModel, callbacks, count_weights

EPOCHS = flags.DEFINE_integer("epochs", 30, "Epochs for each network.", lower_bound=1)
TOLERANCE = flags.DEFINE_float(
    "tolerance",
    0.25,
    "Truncation tolerance, relative to the norm of each kernel. Higher means smaller ranks.",
    lower_bound=0.0,
    upper_bound=0.99,
)
INTEGRATOR = flags.DEFINE_enum(
    "integrator",
    "parallel",
    ["parallel", "rank_adaptive", "fixed_rank"],
    "How the factors move: parallel and rank_adaptive find the ranks, fixed_rank keeps them.",
)
SEED = flags.DEFINE_integer("seed", 0, "Of initial weights and order of batches.", lower_bound=0)
OUTPUT_DIR = flags.DEFINE_string("output_dir", "./out/digits", "Folder for pictures and exports.")
SAVE_TO = flags.DEFINE_string(
    "save_to", None, "Also export the low-rank SavedModel to this folder, NAME/VERSION."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Let --save_to replace a folder that is there.")

_BATCH_SIZE = 32
_LEARNING_RATE = 0.1


def load():
    """Returns `(training images, test images, training labels, test labels)`."""
    digits = load_digits()
    images = (digits.images / 16.0).astype("float32")[..., None]
    # All seeds share one split, so that all accuracies are on the same 450 images.
    return train_test_split(
        images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )


def build(low_rank):
    def conv(filters, rank):
        if low_rank:
            return LowRankConv2D(filters, 3, padding="same", rank=rank, activation="relu")
        return keras.layers.Conv2D(filters, 3, padding="same", activation="relu")

    def dense(units, rank):
        if low_rank:
            return LowRankDense(units, rank=rank, activation="relu")
        return keras.layers.Dense(units, activation="relu")

    inputs = keras.Input((8, 8, 1))
    x = conv(32, rank=9)(inputs)
    x = keras.layers.MaxPooling2D()(x)
    x = conv(64, rank=32)(x)
    x = keras.layers.Flatten()(x)
    x = dense(4096, rank=64)(x)
    outputs = keras.layers.Dense(10)(x)
    return LowRankModel(inputs, outputs) if low_rank else keras.Model(inputs, outputs)


def train(low_rank, data):
    """Trains one network; returns it and its measurements."""
    train_images, test_images, train_labels, test_labels = data
    keras.utils.clear_session()  # resets layer names
    keras.utils.set_random_seed(SEED.value)
    model = build(low_rank)
    low_rank_arguments = {"integrator": INTEGRATOR.value, "truncation": TOLERANCE.value}
    model.compile(
        optimizer=keras.optimizers.SGD(_LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **(low_rank_arguments if low_rank else {}),
    )
    start = model.ranks if low_rank else {}
    timer, watch = results.EpochTimer(), callbacks.RankHistory()
    name = "low-rank" if low_rank else "full-rank"
    history = model.fit(
        train_images,
        train_labels,
        batch_size=_BATCH_SIZE,
        epochs=EPOCHS.value,
        validation_data=(test_images, test_labels),
        verbose=0,
        callbacks=[timer, results.progress_bar(name, len(train_images), _BATCH_SIZE)]
        + [watch] * low_rank,
    )
    steps = -(-len(train_images) // _BATCH_SIZE)
    return model, {
        "accuracy": history.history["val_accuracy"],
        "ranks": {layer: [rank, *watch.ranks[layer]] for layer, rank in start.items()},
        "ms_per_step": 1000.0 * timer.typical / steps,
        "weights": count_weights(model),
    }


def export(model, folder, name):
    """Exports and checks SavedModel and TFLite; returns their sizes in bytes."""
    if not isinstance(model, LowRankModel):
        # A LowRankModel without low-rank layers: both networks are then exported in one way.
        model = LowRankModel(model.inputs, model.outputs)
    sizes = []
    for path, form in (
        (folder / name / "1", "tf_saved_model"),
        (folder / f"{name}.tflite", "litert"),
    ):
        replaced = path.exists()
        model.export(path, format=form, verbose=False, overwrite=True)
        results.say(f"{'Replaced' if replaced else 'Wrote'} {path}")
        sizes.append(size(path))
    return sizes


def size(path):
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def print_comparison(full, low, full_sizes, low_sizes):
    weights = low["weights"]

    def kilobytes(count):
        return f"{count / 1000:,.0f} kB"

    rows = [
        ("test accuracy", *(f"{100 * run['accuracy'][-1]:.2f}%" for run in (full, low))),
        ("weights", f"{weights.full:,}", f"{weights.factored:,}"),
        ("compression", "", f"{weights.saved(weights.factored):.1%} fewer"),
        ("ms per step", *(f"{run['ms_per_step']:.1f}" for run in (full, low))),
        ("SavedModel", *map(kilobytes, (full_sizes[0], low_sizes[0]))),
        ("TFLite", *map(kilobytes, (full_sizes[1], low_sizes[1]))),
        ("ranks", "", " ".join(str(ranks[-1]) for ranks in low["ranks"].values())),
    ]
    title = f"{EPOCHS.value} epochs, {INTEGRATOR.value}, tolerance {TOLERANCE.value}"
    results.print_table(title, ["handwritten digits", "full-rank", "low-rank"], rows)


def draw(path, full, low):
    """Plots ranks and test accuracy over the epochs."""
    figure = Figure(figsize=(10, 4), layout="constrained")  # with Agg, which needs no display
    left, right = figure.subplots(1, 2)
    epochs = range(EPOCHS.value + 1)  # the first rank is that before training
    for layer, ranks in low["ranks"].items():
        left.plot(epochs, ranks, label=layer)
    left.set(title="ranks", xlabel="epoch", ylim=(0, None))
    for label, run in (("full-rank", full), ("low-rank", low)):
        right.plot(epochs[1:], [100 * accuracy for accuracy in run["accuracy"]], label=label)
    right.set(title="test accuracy, %", xlabel="epoch", ylim=(80, 100))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    with results.new_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def main(_):
    save_to = pathlib.Path(SAVE_TO.value) if SAVE_TO.value else None
    if save_to and save_to.exists() and not OVERWRITE.value:
        raise SystemExit(f"{save_to} exists. Pass --overwrite to replace it.")
    folder = pathlib.Path(OUTPUT_DIR.value)
    data = load()
    full_model, full = train(low_rank=False, data=data)
    low_model, low = train(low_rank=True, data=data)
    full_sizes = export(full_model, folder, "full_rank")
    low_sizes = export(low_model, folder, "low_rank")
    draw(folder / "digits.png", full, low)
    if save_to:
        low_model.export(save_to, overwrite=OVERWRITE.value)
    print_comparison(full, low, full_sizes, low_sizes)


if __name__ == "__main__":
    results.run(main)
