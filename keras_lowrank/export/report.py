"""What an artefact costs and how it compares, beside the same of the model at full rank."""

import json
import logging
import statistics
import time
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_lowrank.kernels.kernel_override import override_kernels

_SECONDS = 0.5  # of inferences, for the two medians together
_FEWEST = 5  # inferences of each, however long they take


class Cost(NamedTuple):
    """What one artefact costs.

    Attributes:
        bytes: int, size of the file, or of all files in the folder.
        parameters: int, the numbers in it: kernels, biases, statistics.
        multiply_adds: int, of the matrix products and convolutions of one inference at batch 1.
            Products inside loops (recurrent layers) are not counted.
        milliseconds: float, the median time of one inference at batch 1.
    """

    bytes: int
    parameters: int
    multiply_adds: int
    milliseconds: float


class ExportReport(NamedTuple):
    """The report on an export; `print` shows it as a table.

    Attributes:
        path: str, where the artefact is.
        format: str.
        quantization: str or None.
        artefact: `Cost`.
        full_rank: `Cost` of the same model with whole kernels `U S V^T`, in the same format, in
            float: what would be shipped without low-rank layers.
        difference: float, the largest one between the artefact's outputs and the model's.
        accuracy: float or None, the artefact's, on the data that were given.
        model_accuracy: float or None, the model's, on the same.
    """

    path: str
    format: str
    quantization: str | None
    artefact: Cost
    full_rank: Cost
    difference: float
    accuracy: float | None
    model_accuracy: float | None

    def json(self):
        """The report as JSON text."""
        fields = self._asdict()
        fields.update({name: fields[name]._asdict() for name in ("artefact", "full_rank")})
        return json.dumps(fields, indent=2) + "\n"

    def __str__(self):
        kind = self.format if self.quantization is None else f"{self.format} {self.quantization}"
        lines = [self.path, f"{'':<14} {kind:>20} {'full rank':>14} {'ratio':>8}"]
        for name in Cost._fields:
            ours, full = getattr(self.artefact, name), getattr(self.full_rank, name)
            digits = ",.3f" if name == "milliseconds" else ","
            row = f"{name.replace('_', '-'):<14} {ours:>20{digits}} {full:>14{digits}}"
            lines.append(f"{row} {full / max(ours, 1e-9):>7.1f}x")
        lines.append(f"{'difference':<14} {self.difference:>20.1e}")
        if self.accuracy is not None:
            lines.append(f"{'accuracy':<14} {self.accuracy:>20.2%} {self.model_accuracy:>14.2%}")
        return "\n".join(lines)


def count_multiply_adds(served, kernels, arguments):
    """Multiply-adds of one inference, by TensorFlow's own count of the traced graph."""
    specs = keras.tree.map_structure(tf.TensorSpec.from_tensor, arguments)
    with override_kernels(kernels):
        graph = tf.function(lambda *x: served(*x)).get_concrete_function(*specs).graph
    options = {
        **tf.compat.v1.profiler.ProfileOptionBuilder.float_operation(),
        "account_type_regexes": ["MatMul", "BatchMatMul.*", "Conv.*", "DepthwiseConv.*"],
        "output": "none",
    }
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # the profiler calls what TensorFlow itself calls deprecated
    try:
        return tf.compat.v1.profiler.profile(graph, options=options).total_float_ops // 2
    finally:
        logger.setLevel(level)


def median_milliseconds(runs, arguments):
    """The median times of one inference, of artefacts that take turns.

    Args:
        runs: list of callables, the artefacts.
        arguments: list of arguments, of batch size 1 where it is free.
    """
    for run in runs:
        run(*arguments)  # memory is allocated, and kernels are prepared, once
    times = [[] for _ in runs]
    end = time.perf_counter() + _SECONDS
    while len(times[0]) < _FEWEST or time.perf_counter() < end:
        for run, seconds in zip(runs, times):
            start = time.perf_counter()
            run(*arguments)
            seconds.append(time.perf_counter() - start)
    return [1000.0 * statistics.median(seconds) for seconds in times]
