"""Shared by the examples: measures a fit, prints a table, writes files atomically.

A module of the examples, not a program.
"""

import contextlib
import csv
import json
import os
import pathlib
import platform
import statistics
import sys
import time

import keras
import numpy as np
import rich.console
import rich.table
import tensorflow as tf
import tqdm.keras
from absl import app, logging

import keras_lowrank


class EpochTimer(keras.callbacks.Callback):
    """Measures the seconds of training in every epoch, without validation.

    Attributes:
        seconds: list of float, one for each epoch.
    """

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.perf_counter()

    def on_test_begin(self, logs=None):
        self._end_epoch()

    def on_epoch_end(self, epoch, logs=None):
        self._end_epoch()  # without validation

    def _end_epoch(self):
        if self._begin is not None:
            self.seconds.append(time.perf_counter() - self._begin)
            self._begin = None

    @property
    def typical(self):
        """The median in seconds, without the first epoch, which traces the graph, if possible."""
        return statistics.median(self.seconds[1:] or self.seconds)


def count_traces(model):
    """Returns a list that gets one entry with every trace of the model's train step.

    The body of a `tf.function` runs in Python once for each trace.
    """
    traces, train_step = [], model.train_step

    def counted(data):
        traces.append(len(traces) + 1)
        return train_step(data)

    model.train_step = counted
    return traces


def progress_bar(name, data_size, batch_size):
    """Returns a callback with a bar for the epochs and, on a terminal, one for the batches."""
    batches = int(sys.stderr.isatty())
    return tqdm.keras.TqdmCallback(
        data_size=data_size, batch_size=batch_size, verbose=batches, desc=name
    )


def print_table(title, header, rows):
    """Prints a table with a header and rows of strings."""
    table = rich.table.Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    # Files and pipes have no width; without one, rich would cut the table to 80 columns.
    width = None if sys.stdout.isatty() else 160
    rich.console.Console(width=width).print(table)


@contextlib.contextmanager
def new_file(path, verbose=True):
    """Yields a temporary path, and moves it to `path` on success.

    A reader of `path` always finds a complete file, the old or the new one.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        replaced = path.exists()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if verbose:
        say(f"{'Replaced' if replaced else 'Wrote'} {path}")


def write_json(path, content, verbose=True):
    with new_file(path, verbose) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def write_csv(path, rows, verbose=True):
    """Writes dicts with equal keys; the entries of a list are separated by spaces."""
    with (
        new_file(path, verbose) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def versions():
    """The versions and the machine that a measurement depends on."""
    return {
        "keras_lowrank": keras_lowrank.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
    }


def say(line):
    """Prints a line of progress on stderr: stdout is for the table."""
    print(line, file=sys.stderr, flush=True)


def run(main):
    """Calls `absl.app.run`; Ctrl-C prints one line and exits as in a shell."""
    logging.set_verbosity(logging.ERROR)  # of TensorFlow's savers and converters
    try:
        app.run(main)
    except KeyboardInterrupt:
        say("\nInterrupted. No file was left half-written.")
        sys.exit(130)


def _cell(value):
    return " ".join(map(str, value)) if isinstance(value, list) else value
