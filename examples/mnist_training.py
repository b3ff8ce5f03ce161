"""One network on MNIST, at several tolerances and seeds: what the MNIST examples share.

A module of the examples, not a program.
"""

import pathlib
import statistics
from typing import NamedTuple

import keras
from absl import flags

import keras_lowrank
import mnist_data
import results
from keras_lowrank.compression import count_weights


def _numbers(strings, kind, low, high):
    """Whether all strings are numbers of a kind in `[low, high)`."""
    try:
        return all(low <= kind(string) < high for string in strings)
    except ValueError:
        return False


TOLERANCE = flags.DEFINE_list(
    "tolerance",
    ["0.1", "0.15", "0.2", "0.3"],
    "Truncation tolerances to train with, relative to the norm of each kernel, separated by "
    "commas. A higher one means smaller ranks.",
)
flags.register_validator(
    TOLERANCE,
    lambda values: bool(values) and _numbers(values, float, 0.0, 1.0),
    "must be numbers in [0, 1), separated by commas",
)
COMPRESSION = flags.DEFINE_list(
    "compression",
    [],
    "In place of tolerances: shares of the full-rank weights to save, in percent, separated by "
    "commas; met after 60% of the training.",
)
flags.register_validator(
    COMPRESSION,
    lambda values: _numbers(values, float, 0.0, 100.0),
    "must be numbers in [0, 100), separated by commas",
)
EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs of every run.", lower_bound=1)
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of every row: seeds 0, 1, ...", lower_bound=1)
INTEGRATOR = flags.DEFINE_enum(
    "integrator",
    "parallel",
    ["parallel", "rank_adaptive", "fixed_rank"],
    "How the factors move: parallel and rank_adaptive find the ranks, fixed_rank keeps --ranks.",
)
RANKS = flags.DEFINE_list("ranks", [], "Ranks to start with, one a layer, separated by commas.")
flags.register_validator(
    RANKS,
    lambda values: _numbers(values, int, 1, float("inf")),
    "must be positive integers, separated by commas",
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images in a batch.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.05, "Learning rate of SGD.", lower_bound=0.0)
MOMENTUM = flags.DEFINE_float("momentum", 0.0, "Momentum of SGD.", 0.0, 1.0)
SCHEDULE = flags.DEFINE_enum(
    "schedule", "constant", ["constant", "cosine"], "The learning rate over the training."
)
VALIDATION = flags.DEFINE_bool(
    "validation", False, "Hold the last 6,000 training images out, and report on them."
)
# The share of the training after which a budget is met.
_PRUNING = 0.6
FULL_RANK = flags.DEFINE_bool(
    "full_rank", False, "Also train the same network of keras.layers, for comparison."
)
OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder for the JSON and the CSV. Without it: ./out/NAME_OF_THE_EXAMPLE."
)


def start_ranks():
    return [int(rank) for rank in RANKS.value]


def run_experiment(name, title, build):
    """Trains all rows of the table, writes it after every row, and prints it at the end.

    Args:
        name: str, the name of the files.
        title: str, the headline of the table.
        build: callable `low_rank -> model`, the uncompiled `LowRankModel` or its full-rank twin.

    Returns:
        `(folder, rows)`: where the files are, and the table as a list of dicts.
    """
    train, test = mnist_data.load()
    if VALIDATION.value:
        train, test = train.split(6000)
    folder = pathlib.Path(OUTPUT_DIR.value or f"out/{name}")
    goals = [_Goal(compression=float(share)) for share in COMPRESSION.value]
    goals = goals or [_Goal(tolerance=float(tolerance)) for tolerance in TOLERANCE.value]
    rows, runs = [], []
    for goal in [_Goal()] * FULL_RANK.value + goals:
        batch = [_train(build, goal, seed, train, test) for seed in range(SEEDS.value)]
        runs += batch
        rows.append(_summary(batch))
        report = {"title": title, "settings": _settings(), "versions": results.versions()}
        # After every row: what is interrupted after hours keeps the rows that it has.
        first = len(rows) == 1
        results.write_json(folder / f"{name}.json", {**report, "rows": rows, "runs": runs}, first)
        results.write_csv(folder / f"{name}.csv", rows, first)
    _print(title, rows)
    return folder, rows


class _Goal(NamedTuple):
    """What a row of the table truncates to; neither of both means full rank."""

    tolerance: float | None = None
    compression: float | None = None

    @property
    def low_rank(self):
        return self != _Goal()

    def truncation(self, steps):
        if self.compression is None:
            return keras_lowrank.Tolerance(self.tolerance)
        return keras_lowrank.Budget(
            compression=self.compression, steps=max(1, round(_PRUNING * steps))
        )

    def __str__(self):
        if not self.low_rank:
            return "full rank"
        wanted = [f"{name} {value}" for name, value in self._asdict().items() if value is not None]
        return f"{INTEGRATOR.value}, {wanted[0]}"


def _learning_rate(steps):
    if SCHEDULE.value == "constant":
        return LEARNING_RATE.value
    return keras.optimizers.schedules.CosineDecay(LEARNING_RATE.value, steps)


def _train(build, goal, seed, train, test):
    """One run; returns what was measured."""
    keras.utils.clear_session()  # frees the last model, and layer names start anew
    keras.utils.set_random_seed(seed)
    low_rank = goal.low_rank
    model = build(low_rank)
    batches = train.training_batches(BATCH_SIZE.value, seed)
    steps = EPOCHS.value * len(batches)
    model.compile(
        optimizer=keras.optimizers.SGD(_learning_rate(steps), momentum=MOMENTUM.value),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **(
            {"integrator": INTEGRATOR.value, "truncation": goal.truncation(steps)}
            if low_rank
            else {}
        ),
    )
    # Makes the metrics' variables. Left to the first step, they cost Keras a second trace of it.
    model.evaluate(test.test_batches(), steps=1, verbose=0)
    traces = results.count_traces(model)
    timer, ranks = results.EpochTimer(), keras_lowrank.callbacks.RankHistory()
    bar = results.progress_bar(f"{goal}, seed {seed}", len(train.labels), BATCH_SIZE.value)
    history = model.fit(
        batches,
        validation_data=test.test_batches(),
        epochs=EPOCHS.value,
        verbose=0,
        shuffle=False,  # the data set does that; Keras would warn that it cannot
        callbacks=[timer, bar] + [ranks] * low_rank,
    )
    weights = count_weights(model)
    return {
        "method": INTEGRATOR.value if low_rank else "full_rank",
        **goal._asdict(),
        "seed": seed,
        "accuracy": history.history["val_accuracy"][-1],
        "ranks": list(model.ranks.values()) if low_rank else [],
        "weights": weights._asdict(),
        "seconds_per_epoch": timer.typical,
        "traces": len(traces),
        "accuracy_by_epoch": history.history["val_accuracy"],
        "ranks_by_epoch": ranks.ranks,
    }


def _summary(runs):
    """One row of the table: means over the seeds, medians of ranks."""
    accuracies = [100.0 * run["accuracy"] for run in runs]
    full = runs[0]["weights"]["full"]
    factored = statistics.mean(run["weights"]["factored"] for run in runs)
    training = statistics.mean(run["weights"]["training"] for run in runs)
    return {
        "method": runs[0]["method"],
        "tolerance": runs[0]["tolerance"],
        "compression": runs[0]["compression"],
        "test_accuracy_mean": round(statistics.mean(accuracies), 3),
        "test_accuracy_std": round(statistics.stdev(accuracies), 3) if len(runs) > 1 else None,
        "ranks": [int(statistics.median(ranks)) for ranks in zip(*(run["ranks"] for run in runs))],
        "evaluation_weights": round(factored),
        "evaluation_compression": round(100.0 * (1.0 - factored / full), 2),
        "training_weights": round(training),
        "training_compression": round(100.0 * (1.0 - training / full), 2),
        "seconds_per_epoch": round(statistics.median(r["seconds_per_epoch"] for r in runs), 2),
        "traces": max(run["traces"] for run in runs),
    }


def _settings():
    return {
        "epochs": EPOCHS.value,
        "seeds": SEEDS.value,
        "integrator": INTEGRATOR.value,
        "start_ranks": start_ranks(),
        "batch_size": BATCH_SIZE.value,
        "learning_rate": LEARNING_RATE.value,
        "schedule": SCHEDULE.value,
        "momentum": MOMENTUM.value,
        "validation": VALIDATION.value,
    }


def _print(title, rows):
    header = ["method", "goal", "test accuracy", "ranks", "weights, evaluation"]
    header += ["weights, training", "s per epoch", "traces"]
    cells = []
    for row in rows:
        spread = row["test_accuracy_std"]
        goal = row["compression"] or row["tolerance"]
        cells.append(
            [
                row["method"],
                "-" if goal is None else f"{goal}" + "%" * bool(row["compression"]),
                f"{row['test_accuracy_mean']:.2f}%" + (f" ± {spread:.2f}" if spread else ""),
                " ".join(map(str, row["ranks"])) or "-",
                _weights(row, "evaluation"),
                _weights(row, "training"),
                f"{row['seconds_per_epoch']:.1f}",
                str(row["traces"]),
            ]
        )
    results.print_table(title, header, cells)


def _weights(row, when):
    saved = row[f"{when}_compression"]
    return f"{row[f'{when}_weights']:,}" + (f" (-{saved:.1f}%)" if saved else "")
