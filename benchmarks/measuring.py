"""Measures time in turns, so that other load affects all alike, and memory by process."""

import gc
import json
import resource
import subprocess
import sys
import time

import networks
import numpy as np
import rich.console
import rich.progress
import tensorflow as tf

from keras_lowrank import find_low_rank_layers


class TrainingSteps:
    """Training steps of one model, with the train function of `fit`.

    Args:
        model: compiled Keras model.
        batch: int, the batch size of random numbers.
    """

    def __init__(self, model, batch):
        random = np.random.default_rng(0)
        shape = (batch, *model.input_shape[1:])
        if model.inputs[0].dtype == "int32":  # indices of a table
            rows = random.integers(0, model.layers[1].input_dim, shape, dtype="int32")
        else:
            rows = random.standard_normal(shape, dtype="float32")
        labels = random.integers(0, networks.CLASSES, batch)
        data = tf.data.Dataset.from_tensors((rows, labels)).cache().repeat().prefetch(2)
        self.model = model
        model.fit(data, epochs=1, steps_per_epoch=2, verbose=0, shuffle=False)
        self._batches = iter(data)

    def __call__(self):
        logs = self.model.train_function(self._batches)
        return float(logs["loss"])  # waits for the device


def seconds_in_turns(candidates, rounds, calls):
    """Returns `{key: seconds per call in every round}`.

    Args:
        candidates: dict from a key to a callable.
        rounds: int. Every candidate has one turn in each round.
        calls: int, or dict from a key to an int, the calls of a turn. One more call before them is
            not counted, because the previous candidate has emptied the caches.
    """
    seconds = {key: [] for key in candidates}
    gc.collect()
    with progress() as bar:
        task = bar.add_task("rounds", total=rounds * len(candidates))
        for _ in range(rounds):
            for key, call in candidates.items():
                call()
                begin = time.perf_counter()
                turn = calls[key] if isinstance(calls, dict) else calls
                for _ in range(turn):
                    call()
                seconds[key].append((time.perf_counter() - begin) / turn)
                bar.advance(task)
    return seconds


def progress():
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.TimeElapsedColumn())
    return rich.progress.Progress(*columns, console=rich.console.Console(stderr=True))


def check_ranks(model, rank):
    """Exits if a rank is neither the measured one nor the largest possible."""
    layers = find_low_rank_layers(model)
    for path, found in getattr(model, "ranks", {}).items():
        layer = layers.get(path) or layers[path.rpartition("/")[0]]  # one of two ranks of a kernel
        if found != min(rank, layer.max_rank):
            raise SystemExit(f"The rank of {path} has left {rank}: {found}. Nothing was written.")


def ratio(seconds, key, to):
    """`(25%, median, 75%)` of the ratio of two candidates over the rounds."""
    return np.percentile(np.array(seconds[key]) / np.array(seconds[to]), (25, 50, 75)).tolist()


def milliseconds(seconds, key):
    return 1000.0 * float(np.median(seconds[key]))


def peak_megabytes():
    """The peak of this process's resident memory so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def in_a_process(program, what, *flags):
    """Runs a benchmark with `--child=what` in its own process; returns its last line as JSON.

    Args:
        program: str, path of the benchmark.
        what: a JSON value.
        *flags: str, further arguments.
    """
    command = [sys.executable, program, *flags, f"--child={json.dumps(what)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
