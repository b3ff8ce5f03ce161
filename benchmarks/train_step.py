"""How long is one training step: full-rank, two-factor and low-rank, in one process?

A fully connected network, 784-5120-5120-5120-5120-10 unless told otherwise, on one batch of random
numbers, trained by SGD as
  full_rank      keras.layers.Dense, compiled with Keras's defaults;
  two_factor     Dense(r, use_bias=False) followed by Dense(m): plain low-rank Keras, rank fixed;
  rank_adaptive  this package, the whole step with augmentation and truncation;
  fixed_rank     this package, with its second pass.
All hidden layers but the head have rank r. The models take turns; what counts is the ratio to
full_rank in the same round, its median and its quartiles over the rounds, so that what else the
machine does meets all alike. Every model runs the train function that `fit` runs.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --widths 1024,1024 --ranks 8,16,32
"""

import gc
import json
import os
import pathlib
import platform
import sys
import time

import keras
import numpy as np
import rich.console
import rich.progress
import rich.table
import tensorflow as tf
from absl import app, flags

from keras_lowrank import LowRankDense, LowRankModel

WIDTHS = flags.DEFINE_list("widths", ["5120"] * 4, "Neurons of the hidden layers.")
RANKS = flags.DEFINE_list("ranks", ["32"], "Ranks to measure at; each gives its own rows.")
BATCH = flags.DEFINE_integer("batch", 256, "Rows in a batch.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 20, "Rounds; in each, every model once.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 3, "Steps of a model in a round.", lower_bound=1)
OUTPUT = flags.DEFINE_string(
    "output", "./out/benchmarks/train_step.json", "The JSON file; one that is there is replaced."
)
for _name in ("widths", "ranks"):
    flags.register_validator(
        _name,
        lambda values: bool(values) and all(v.isdecimal() and int(v) > 0 for v in values),
        "must be positive integers, separated by commas",
    )

_FEATURES, _CLASSES = 784, 10
_METHODS = ("two_factor", "parallel", "rank_adaptive", "fixed_rank")


def build(method, widths, rank):
    """Returns the compiled model of one row."""
    keras.utils.set_random_seed(0)
    low_rank = method in ("parallel", "rank_adaptive", "fixed_rank")
    inputs = x = keras.Input((_FEATURES,))
    for width in widths:
        if low_rank:
            # Bounds instead of `freeze_ranks`: the whole adaptive step is measured, its
            # augmentation and truncation too, and still the rank is the one that is named.
            bounds = {"min_rank": rank, "max_rank": rank}
            x = LowRankDense(width, rank=rank, activation="relu", **bounds)(x)
        else:
            if method == "two_factor":
                x = keras.layers.Dense(rank, use_bias=False)(x)
            x = keras.layers.Dense(width, activation="relu")(x)
    outputs = keras.layers.Dense(_CLASSES)(x)
    model = LowRankModel(inputs, outputs) if low_rank else keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.SGD(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **({"integrator": method} if low_rank else {}),
    )
    return model


class Runner:
    """One model and its endless batches.

    Args:
        method, widths, rank: see `build`.
        data: `tf.data.Dataset` without end.
    """

    def __init__(self, method, widths, rank, data):
        self.model = build(method, widths, rank)
        self.model.fit(data, epochs=1, steps_per_epoch=2, verbose=0, shuffle=False)
        self._batches = iter(data)
        self.step()

    def step(self):
        logs = self.model.train_function(self._batches)
        return float(logs["loss"])  # waits for a device that runs ahead

    def seconds_per_step(self):
        self.step()  # the model before has just emptied the caches
        begin = time.perf_counter()
        for _ in range(STEPS.value):
            self.step()
        return (time.perf_counter() - begin) / STEPS.value


def measure(widths, ranks):
    """Returns `{(method, rank): seconds of every round}`; the rank of full_rank is None."""
    random = np.random.default_rng(0)
    batch = (
        random.standard_normal((BATCH.value, _FEATURES), dtype="float32"),
        random.integers(0, _CLASSES, BATCH.value),
    )
    data = tf.data.Dataset.from_tensors(batch).cache().repeat().prefetch(2)
    keys = [("full_rank", None)] + [(method, rank) for rank in ranks for method in _METHODS]
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.TimeElapsedColumn())
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as progress:
        task = progress.add_task("building", total=len(keys) * (1 + REPEATS.value))
        runners = {}
        for method, rank in keys:
            runners[method, rank] = Runner(method, widths, rank, data)
            progress.advance(task)
        seconds = {key: [] for key in keys}
        gc.collect()
        for turn in range(REPEATS.value):
            progress.update(task, description=f"round {turn + 1} of {REPEATS.value}")
            for key, runner in runners.items():
                seconds[key].append(runner.seconds_per_step())
                progress.advance(task)
    for (_, rank), runner in runners.items():
        found = set(getattr(runner.model, "ranks", {}).values())
        if found - {rank}:
            raise SystemExit(f"A rank has left {rank}: {sorted(found)}. Nothing was written.")
    return seconds


def summarize(seconds):
    """Rows of the table: times in ms, and ratios to full_rank round by round."""
    full = np.array(seconds["full_rank", None])
    rows = []
    for (method, rank), times in seconds.items():
        low, median, high = np.percentile(np.array(times) / full, (25, 50, 75))
        rows.append(
            {
                "method": method,
                "rank": rank,
                "ms_per_step": round(1000 * float(np.median(times)), 3),
                "ratio": round(float(median), 4),
                "ratio_quartiles": [round(float(low), 4), round(float(high), 4)],
                "ms_of_rounds": [round(1000 * time, 3) for time in times],
            }
        )
    return rows


def print_rows(title, rows):
    table = rich.table.Table(title=title, title_justify="left")
    table.add_column("method")
    for name in ("rank", "ms per step", "ratio to full rank", "quartiles"):
        table.add_column(name, justify="right")
    for row in rows:
        low, high = row["ratio_quartiles"]
        table.add_row(
            row["method"],
            str(row["rank"] or "-"),
            f"{row['ms_per_step']:.1f}",
            f"{row['ratio']:.3f}",
            f"{low:.3f} to {high:.3f}",
        )
    rich.console.Console().print(table)


def write(path, report):
    """Writes the JSON under another name first, so that no half of it is ever at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
        verb = "Replaced" if path.exists() else "Wrote"
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{verb} {path}", file=sys.stderr)


def main(_):
    widths = [int(width) for width in WIDTHS.value]
    rows = summarize(measure(widths, [int(rank) for rank in RANKS.value]))
    network = "-".join(map(str, [_FEATURES, *widths, _CLASSES]))
    report = {
        "network": network,
        "batch": BATCH.value,
        "repeats": REPEATS.value,
        "steps": STEPS.value,
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "rows": rows,
    }
    print_rows(f"{network}, batch {BATCH.value}, {REPEATS.value} rounds", rows)
    write(pathlib.Path(OUTPUT.value), report)


if __name__ == "__main__":
    try:
        app.run(main)
    except KeyboardInterrupt:
        print("\nInterrupted. No file was left half-written.", file=sys.stderr)
        sys.exit(130)
