"""How much accuracy depends on the learning rate and on the initial singular values.

A small network on MNIST (784-256-256-10, both hidden layers of rank 32) is trained with SGD and
momentum from the same matrices in three ways:

- low-rank at fixed ranks, where the step does not depend on the condition of the core S;
- low-rank with ranks that fall to half as many weights;
- as two plain layers `A B`, with `A = U sqrt(S)` and `B = sqrt(S) V^T`, whose gradients are
  multiplied by the factors.

The initial singular values fall geometrically by a given ratio. The bases are random, and the norm
is that of Keras's initializer.

    python examples/robustness.py                          # about four minutes on one core
    python examples/robustness.py --momentum 0 --seeds 3

Writes out/robustness/robustness.json, .csv and .png: test accuracy for every learning rate and
ratio, and its spread.
"""

import itertools
import math
import pathlib
import statistics

import keras
import numpy as np
import tqdm
from absl import flags
from matplotlib.figure import Figure

import image_data
import results
from keras_lowrank import Budget, Point
from methods import LowRank, TwoFactor, balanced_factors

flags.adopt_module_key_flags(image_data)
LEARNING_RATES = flags.DEFINE_list(
    "learning_rates", ["0.003", "0.01", "0.03", "0.1", "0.3"], "Learning rates, with commas."
)
RATIOS = flags.DEFINE_list(
    "ratios", ["1", "1e2", "1e4", "1e6"], "Ratios of the largest to the least singular value."
)
MOMENTUM = flags.DEFINE_float("momentum", 0.9, "Momentum of SGD.", 0.0, 1.0)
EPOCHS = flags.DEFINE_integer("epochs", 1, "Epochs of every run.", lower_bound=1)
LIMIT = flags.DEFINE_integer("limit", 60000, "Training images.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images in a batch.", lower_bound=1)
RANK = flags.DEFINE_integer("rank", 32, "Rank of both hidden layers.", lower_bound=2)
COMPRESSION = flags.DEFINE_float(
    "compression", 0.9, "The share of the weights to save in the run whose ranks fall.", 0.0, 0.99
)
SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of every row: seeds 0, 1, ...", lower_bound=1)
OUTPUT_DIR = flags.DEFINE_string("output_dir", "./out/robustness", "Folder of JSON, CSV and plot.")

_WIDTHS = (784, 256, 256)
# Names in the table, and labels in the plot.
METHODS = {
    "low_rank": "keras_lowrank, fixed ranks",
    "low_rank_adaptive": "keras_lowrank, ranks by a budget",
    "two_factor": "two factors",
}


def spectrum(ratio, rank, energy):
    """Singular values that fall geometrically by `ratio`, with sum of squares `energy`."""
    values = float(ratio) ** -np.linspace(0.0, 1.0, rank)
    return values * math.sqrt(energy / np.sum(values**2))


def starting_matrices(ratio, rank, seed):
    """The initial `(U, s, V)` of every hidden layer."""
    rng = np.random.default_rng(seed)
    matrices = []
    for n, m in itertools.pairwise(_WIDTHS):
        left, right = (np.linalg.qr(rng.standard_normal((size, rank)))[0] for size in (n, m))
        energy = n * m * 2.0 / (n + m)  # of "glorot_uniform", in expectation
        matrices.append((left, spectrum(ratio, rank, energy), right))
    return matrices


def build(layers, seed):
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Flatten()(inputs)
    for width in _WIDTHS[1:]:
        x = layers.dense(width, activation="relu")(x)
    # With its own seed, the head starts equal in all methods.
    head = keras.layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed))
    return layers.model(inputs, head(x))


def train(method, rate, ratio, seed, train_split, test_batches):
    """Trains one network; returns its measurements."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    ranks = [RANK.value] * (len(_WIDTHS) - 1)
    model = build(TwoFactor(ranks) if method == "two_factor" else LowRank(ranks), seed)
    for index, (left, values, right) in enumerate(starting_matrices(ratio, RANK.value, seed), 1):
        if method == "two_factor":
            a, b = balanced_factors(left, values, right)
            model.get_layer(f"matrix_{index}_a").kernel.assign(a)
            model.get_layer(f"matrix_{index}").kernel.assign(b)
        else:
            start = Point(left, np.diag(values), right)
            model.get_layer(f"matrix_{index}").factors.assign(start)
    batches = train_split.training_batches(BATCH_SIZE.value, seed)
    steps = max(1, round(0.6 * EPOCHS.value * len(batches)))
    budget = Budget(compression=COMPRESSION.value, steps=steps)
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=MOMENTUM.value),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **({} if method == "two_factor" else {"truncation": budget}),
    )
    if method == "low_rank":
        model.freeze_ranks()
    try:
        history = model.fit(batches, epochs=EPOCHS.value, verbose=0, shuffle=False).history
        diverged = not np.isfinite(history["loss"][-1])
    except FloatingPointError:  # a LowRankModel raises it for a loss of NaN
        diverged = True
    # After divergence the accuracy is that of guessing.
    accuracy = 0.1 if diverged else model.evaluate(test_batches, verbose=0)[1]
    return {
        "method": method,
        "learning_rate": rate,
        "ratio": ratio,
        "seed": seed,
        "accuracy": accuracy,
        "diverged": diverged,
        "ranks": list(getattr(model, "ranks", {}).values()) or ranks,
    }


def table(runs):
    """One row for all seeds of a method, learning rate and ratio; accuracies in percent."""
    groups = {}
    for run in runs:
        groups.setdefault((run["method"], run["learning_rate"], run["ratio"]), []).append(run)
    rows = []
    for (method, rate, ratio), group in groups.items():
        accuracies = [100.0 * run["accuracy"] for run in group]
        spread = round(statistics.stdev(accuracies), 3) if len(group) > 1 else None
        rows.append(
            {
                "method": method,
                "learning_rate": rate,
                "ratio": ratio,
                "test_accuracy_mean": round(statistics.mean(accuracies), 3),
                "test_accuracy_std": spread,
                "diverged": sum(run["diverged"] for run in group),
            }
        )
    return rows


def spreads(rows):
    """The spread of each method's accuracy over all rates and ratios, in percent."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        accuracies = [row["test_accuracy_mean"] for row in rows if row["method"] == method]
        found.append(
            {
                "method": method,
                "mean": round(statistics.mean(accuracies), 3),
                "std": round(statistics.pstdev(accuracies), 3),
                "min": min(accuracies),
                "max": max(accuracies),
            }
        )
    return found


def plot(path, rows):
    """Plots accuracy against the ratio, one panel for each learning rate."""
    rates = sorted({row["learning_rate"] for row in rows})
    figure = Figure(figsize=(2.6 * len(rates), 3.4), layout="constrained")
    for axes, rate in zip(figure.subplots(1, len(rates), sharey=True, squeeze=False)[0], rates):
        for method, label in METHODS.items():
            chosen = [r for r in rows if (r["method"], r["learning_rate"]) == (method, rate)]
            axes.errorbar(
                [row["ratio"] for row in chosen],
                [row["test_accuracy_mean"] for row in chosen],
                [row["test_accuracy_std"] or 0.0 for row in chosen],
                marker="o",
                capsize=3,
                label=label,
            )
        axes.set(title=f"learning rate {rate}", xscale="log", xlabel="largest / least sigma")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy (%)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(METHODS))
    with results.new_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])


def main(_):
    train_split, test_split = image_data.load("mnist")
    train_split, test_batches = train_split.take(LIMIT.value), test_split.test_batches()
    folder = pathlib.Path(OUTPUT_DIR.value)
    cases = [
        (method, float(rate), float(ratio), seed)
        for rate in LEARNING_RATES.value
        for ratio in RATIOS.value
        for method in METHODS
        for seed in range(SEEDS.value)
    ]
    settings = {flag.name: flag.value for flag in (MOMENTUM, EPOCHS, LIMIT, BATCH_SIZE, RANK)}
    settings |= {"compression": COMPRESSION.value, "widths": list(_WIDTHS)}
    runs = []
    for case in tqdm.tqdm(cases, unit="run"):
        runs.append(train(*case, train_split, test_batches))
    rows = table(runs)
    found = spreads(rows)
    report = {"settings": settings, "versions": results.versions(), "spreads": found}
    results.write_json(folder / "robustness.json", {**report, "rows": rows, "runs": runs})
    results.write_csv(folder / "robustness.csv", rows)
    plot(folder / "robustness.png", rows)
    results.print_table(
        "Test accuracy over all learning rates and starting spectra",
        ["method", "mean", "std", "least", "greatest"],
        [
            [METHODS[one["method"]]] + [f"{one[key]:.2f}%" for key in ("mean", "std", "min", "max")]
            for one in found
        ],
    )


if __name__ == "__main__":
    results.run(main)
