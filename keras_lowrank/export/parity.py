"""Checks that an export computes what the model computes, before it is moved into place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.error_reason import reason
from keras_lowrank.export.random_inputs import RandomInputs
from keras_lowrank.export.samples import Samples
from keras_lowrank.export.served import SCORES, Served
from keras_lowrank.layers.find_layers import find_built_layers
from keras_lowrank.training.snapshot import Snapshot

# Largest difference between export and model, relative to outputs above 1.
TOLERANCE = 1e-4

# Largest root mean square of the difference, relative to that of the outputs, by quantization.
# Used without `check_data`.
ROUNDING = {"float16": 0.01, "dynamic_int8": 0.1, "int8": 0.1}

_BATCHES = (1, 3)  # batch sizes of the check: a file's batch size is open unless fixed
_ROWS = 256  # samples in a batch for the accuracy


class Agreement(NamedTuple):
    """How an export compares with the model.

    Attributes:
        difference: float, the largest difference of any output.
        accuracy: float or None, the export's accuracy on `check_data`.
        model_accuracy: float or None, the model's accuracy on `check_data`.
    """

    difference: float
    accuracy: float | None = None
    model_accuracy: float | None = None


class Reference(NamedTuple):
    """The model's outputs on the inputs of the check.

    Attributes:
        inputs: str, a description of the inputs.
        batches: list of pairs `(arguments, flat list of outputs)`.
    """

    inputs: str
    batches: list[tuple[Any, list[np.ndarray]]]


def reference(served: Served, inputs: Samples | None = None, quantized: bool = False) -> Reference:
    """Computes the model's outputs before the export.

    Args:
        served: `Served`.
        inputs: `Samples`, or None for random numbers.
        quantized: bool. Use more inputs, for a mean difference.

    Returns:
        `Reference`.

    Raises:
        ValueError: the model fails or returns NaN on the inputs.
    """
    run = of_model(served)
    batches = []
    # The export of a stateful layer starts from the states that the model has now.
    states = Snapshot(keras_internals.states(served.model))
    try:
        source = inputs or RandomInputs(served)
        for batch in (*_BATCHES, 32) if quantized else _BATCHES:
            arguments = source.arguments(batch)
            try:
                outputs = run(*arguments)
            except Exception as error:  # any class, from the model's code
                raise ValueError(
                    f"The model itself fails on {source.name}. {source.remedy}{served.remedy} "
                    f"Received: {reason(error)}"
                ) from error
            if any(_has_nan(output) for output in outputs):
                raise ValueError(
                    f"The model itself returns NaN on {source.name}, which cannot be checked. "
                    f"{source.remedy} Received: NaN from a {type(served.model).__name__}"
                )
            batches.append((arguments, outputs))
    finally:
        states.restore()
    return Reference(source.name, batches)


def check(
    served: Served,
    run: Callable[..., list[np.ndarray]],
    expected: Reference,
    rounding: str | None = None,
    labelled: "Labelled | None" = None,
    accuracy_drop: float = 0.01,
) -> Agreement:
    """Compares an export with the model; see `LowRankModel.export` for the rules.

    Args:
        served: `Served`.
        run: callable, the export: from arguments to a flat list of arrays.
        expected: `Reference`.
        rounding: str or None, the quantization, a key of `ROUNDING`.
        labelled: `Labelled` or None, data for the accuracy.
        accuracy_drop: float, how far the accuracy may fall below the model's.

    Returns:
        `Agreement`.

    Raises:
        ValueError: the difference is larger than allowed, or the export does not run.
    """
    difference = _compare(served, run, expected, rounding, labelled is not None)
    if labelled is None:
        return Agreement(difference)
    accuracy, best = labelled.accuracy(run), labelled.accuracy(of_model(served))
    if not accuracy >= best - accuracy_drop:
        raise ValueError(
            f"The export must reach the accuracy of the model, {best:.2%}, less "
            f"`accuracy_drop`, {accuracy_drop:.2%}. Nothing was written. Received: {accuracy:.2%}"
        )
    return Agreement(difference, accuracy, best)


def _compare(
    served: Served,
    run: Callable[..., list[np.ndarray]],
    expected: Reference,
    rounding: str | None,
    by_accuracy: bool,
) -> float:
    """The largest difference; raises ValueError if it, or its root mean square, is too large."""
    largest = 0.0
    for arguments, outputs in expected.batches:
        for want, got in zip(outputs, _run(run, arguments, expected.inputs), strict=True):
            if want.dtype == object:
                continue  # labels, which follow from the scores
            # The difference of two infinite outputs, as of a mask, would be NaN.
            with np.errstate(invalid="ignore"):
                gap = np.where(want == got, 0.0, np.abs(want - np.asarray(got, "float32")))
            finite = np.where(np.isfinite(want), want, 0.0)
            difference = np.max(gap, initial=0.0)
            largest = max(largest, float(difference))
            if rounding is None:
                allowed = _tolerance(served.model) * max(1.0, np.max(np.abs(finite), initial=0.0))
            elif not by_accuracy:
                allowed = ROUNDING[rounding] * _root_mean_square(finite)
                difference = _root_mean_square(gap)
            else:
                allowed = np.inf
            if not difference <= allowed:
                raise ValueError(_explained(allowed, difference, rounding, expected.inputs))
    return largest


def _run(export: Callable[..., list[np.ndarray]], arguments: Any, inputs: str) -> list[np.ndarray]:
    try:
        return export(*arguments)
    except ValueError:
        raise
    except Exception as error:  # of the runtime's own classes
        raise ValueError(
            f"The export must run on {inputs}, as the model does. Nothing was written. "
            f"Received: {reason(error)}"
        ) from error


def _explained(allowed: float, difference: float, rounding: str | None, inputs: str) -> str:
    text = (
        f"The export must agree with the model on {inputs} to {allowed:.1e}. Nothing was "
        f"written. Received: a difference of {difference:.1e}"
    )
    if rounding is not None:
        text += " (root mean square). Pass `check_data=(x, y)` to let the accuracy decide"
    return text


class Labelled:
    """Inputs and targets that an accuracy is computed on.

    Args:
        served: `Served`.
        check_data: pair `(x, y)` of inputs and targets.

    Attributes:
        samples: `Samples`, the inputs.

    Raises:
        ValueError: `check_data` is not a pair, or its arrays do not fit the model or each other.
    """

    samples: Samples

    def __init__(self, served: Served, check_data: tuple[Any, Any]) -> None:
        if not isinstance(check_data, tuple | list) or len(check_data) != 2:
            raise ValueError(
                "`check_data` must be a pair (x, y) of inputs and targets. "
                f"Received: {type(check_data).__name__}"
            )
        x, y = check_data
        self._served = served
        self.samples, self._targets = Samples(x, served, "check_data"), np.asarray(y)
        self.samples.check_one_by_one()
        if len(self.samples) != len(self._targets):
            raise ValueError(
                "`check_data` must hold one target for each sample. Received: "
                f"{len(self._targets)} targets for {len(self.samples)} samples"
            )

    def accuracy(self, run: Callable[..., list[np.ndarray]]) -> float:
        """Returns the accuracy of a callable from arguments to a flat list of arrays.

        Raises:
            ValueError: there is more than one output.
        """
        batches = [
            self._scores(run(*self._served.arguments(arrays)))
            for arrays in self.samples.in_batches(self._served.batch_size or _ROWS)
        ]
        outputs = np.concatenate(batches)
        targets = self._targets
        if targets.ndim == outputs.ndim - 1:
            targets = targets[..., None]
        if outputs.shape[-1] == 1:
            hits = keras.metrics.binary_accuracy(targets, outputs)
        elif targets.shape == outputs.shape:
            hits = keras.metrics.categorical_accuracy(targets, outputs)
        else:
            hits = keras.metrics.sparse_categorical_accuracy(targets, outputs)
        return float(np.mean(hits))

    def _scores(self, outputs: list[np.ndarray]) -> np.ndarray:
        if self._served.class_labels is not None:
            outputs = outputs[sorted(("label", SCORES)).index(SCORES) :]
        if len(outputs) != 1:
            raise ValueError(
                "`check_data` needs a model with one output, whose accuracy it compares. "
                f"Received: {len(outputs)} outputs"
            )
        return np.asarray(outputs[0], "float32")


def of_model(served: Served) -> Callable[..., list[np.ndarray]]:
    """Returns a callable from the arguments to the flat list of the model's outputs, as arrays."""

    def run(*arguments: Any) -> list[np.ndarray]:
        return [_as_array(output) for output in keras.tree.flatten(served(*arguments))]

    return run


def _has_nan(output: np.ndarray) -> bool:
    return output.dtype != object and bool(np.isnan(output).any())


def _as_array(output: tf.Tensor) -> np.ndarray:
    if output.dtype == tf.string:
        return output.numpy()
    return keras.ops.convert_to_numpy(keras.ops.cast(output, "float32"))


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if np.size(values) else 0.0


def _tolerance(model: keras.Model) -> float:
    """`TOLERANCE`, or in half precision the sum of its rounding errors."""
    types = {layer.compute_dtype for layer in find_built_layers(model).values()}
    coarse = [tf.as_dtype(name) for name in types if name in ("float16", "bfloat16")]
    units = [
        16 * float(np.finfo(kind.as_numpy_dtype).eps) if kind != tf.bfloat16 else 2.0**-3
        for kind in coarse
    ]
    return max([TOLERANCE, *units])
