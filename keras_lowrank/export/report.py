"""The costs of an export beside those of the same model at full rank."""

import json
import logging
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_lowrank.export.served import Served
from keras_lowrank.kernels.kernel_override import ProductKernel, override_kernels
from keras_lowrank.manifold.factors import Factors

_SECONDS = 0.5  # of inference, for all medians together
_FEWEST = 5  # inferences for a median, however long they take


class Cost(NamedTuple):
    """The cost of one export.

    Attributes:
        bytes: int, the size of the file, or of all files in the folder.
        parameters: int, how many numbers it stores: kernels, biases, statistics.
        multiply_adds: int, in the matrix products and convolutions of one inference at batch 1.
            Products inside loops (recurrent layers) are not counted.
        milliseconds: float, the median time of one inference at batch 1.
    """

    bytes: int
    parameters: int
    multiply_adds: int
    milliseconds: float


class ExportReport(NamedTuple):
    """The report on an export. `print` shows it as a table.

    Attributes:
        path: str, the file or folder.
        format: str, as in `LowRankModel.export`.
        quantization: str or None, as in `LowRankModel.export`.
        artefact: `Cost` of the export.
        full_rank: `Cost` of the same model with full kernels `U S V^T`, in the same format and in
            float.
        difference: float, the largest difference between the outputs of export and model.
        accuracy: float or None, the export's accuracy on `check_data`.
        model_accuracy: float or None, the model's accuracy on `check_data`.

    Example:

    >>> inputs = keras.Input((64,))
    >>> model = LowRankModel(inputs, LowRankDense(64, rank=4, use_bias=False)(inputs))
    >>> report = model.export(tempfile.mkdtemp() + "/1", verbose=False, report=True)
    >>> report.artefact.parameters, report.full_rank.parameters
    (512, 4096)
    """

    path: str
    format: str
    quantization: str | None
    artefact: Cost
    full_rank: Cost
    difference: float
    accuracy: float | None
    model_accuracy: float | None

    def json(self) -> str:
        """Returns the report as JSON text."""
        fields = self._asdict()
        fields.update({name: fields[name]._asdict() for name in ("artefact", "full_rank")})
        return json.dumps(fields, indent=2) + "\n"

    def __str__(self) -> str:
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


def count_multiply_adds(
    served: Served, kernels: dict[Factors, ProductKernel], arguments: Any
) -> int:
    """Counts the multiply-adds of one inference with TensorFlow's profiler.

    Args:
        served: `Served`.
        kernels: dict from `Factors` to the `ProductKernel` to use instead.
        arguments: list of arguments of one inference.
    """
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
    logger.setLevel(logging.ERROR)  # the profiler triggers warnings of deprecation
    try:
        return tf.compat.v1.profiler.profile(graph, options=options).total_float_ops // 2
    finally:
        logger.setLevel(level)


def median_milliseconds(runs: list[Callable], arguments: Any) -> list[float]:
    """Measures the median time of one inference, of exports that take turns.

    Args:
        runs: list of callables, the exports.
        arguments: list of arguments of one inference.

    Returns:
        List of floats, one for each export.
    """
    for run in runs:
        run(*arguments)  # the first run allocates memory and prepares kernels
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + _SECONDS
    while len(times[0]) < _FEWEST or time.perf_counter() < end:
        for run, seconds in zip(runs, times):
            start = time.perf_counter()
            run(*arguments)
            seconds.append(time.perf_counter() - start)
    return [1000.0 * statistics.median(seconds) for seconds in times]
