"""Does an artefact compute what the model computes? Asked before it is put in place."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.error_reason import reason
from keras_lowrank.export.random_inputs import RandomInputs
from keras_lowrank.export.samples import Samples
from keras_lowrank.export.served import SCORES
from keras_lowrank.layers.find_layers import find_built_layers
from keras_lowrank.training.snapshot import Snapshot

# Largest difference between an artefact and the model, relative to outputs above 1.
TOLERANCE = 1e-4

# Root mean square of the difference, relative to that of the outputs, where no data tell accuracy.
ROUNDING = {"float16": 0.01, "dynamic_int8": 0.1, "int8": 0.1}

_BATCHES = (1, 3)  # of the check: the batch size of a file is free unless it was fixed
_ROWS = 256  # in a batch of the data for the accuracy


class Agreement(NamedTuple):
    """How an artefact compares with the model.

    Attributes:
        difference: float, the largest one of any output.
        accuracy: float or None, the artefact's, on the data that were given.
        model_accuracy: float or None, the model's, on the same.
    """

    difference: float
    accuracy: float | None = None
    model_accuracy: float | None = None


class Reference(NamedTuple):
    """What a model computes of the inputs of the check.

    Attributes:
        inputs: str, what they are.
        batches: list of `(arguments, flat list of outputs)`.
    """

    inputs: str
    batches: list


def reference(served, inputs=None, quantized=False):
    """What the model computes of some inputs, before anything is made of it.

    Args:
        served: `Served`.
        inputs: `Samples`, or None for random numbers.
        quantized: bool. The difference is then a mean, over more inputs.

    Returns:
        `Reference`.

    Raises:
        ValueError: the model fails on them, or gives NaN.
    """
    run = of_model(served)
    batches = []
    # A stateful layer goes on here and in the artefact; the model's is then put back.
    states = Snapshot(keras_internals.states(served.model))
    try:
        inputs = inputs or RandomInputs(served)
        for batch in (*_BATCHES, 32) if quantized else _BATCHES:
            arguments = inputs.arguments(batch)
            try:
                outputs = run(*arguments)
            except Exception as error:  # whatever the code of the model raises
                raise ValueError(
                    f"The model itself fails on {inputs.name}. {inputs.remedy}{served.remedy} "
                    f"Received: {reason(error)}"
                ) from error
            if any(_has_nan(output) for output in outputs):
                raise ValueError(
                    f"The model itself gives NaN on {inputs.name}, which cannot be checked. "
                    f"{inputs.remedy} Received: NaN from a {type(served.model).__name__}"
                )
            batches.append((arguments, outputs))
    finally:
        states.restore()
    return Reference(inputs.name, batches)


def check(served, run, expected, rounding=None, labelled=None, accuracy_drop=0.01):
    """Compares an artefact with the model; see `LowRankModel.export` for the rules.

    Args:
        served: `Served`.
        run: callable, the artefact: arguments in, flat list of arrays out.
        expected: `Reference`.
        rounding: str or None, the key of `ROUNDING` that the artefact is quantised by.
        labelled: `Labelled` or None.
        accuracy_drop: float, how much lower than the model's the accuracy may be.

    Returns:
        `Agreement`.

    Raises:
        ValueError: they differ by more than the rule allows.
    """
    difference = _compare(served, run, expected, rounding, labelled is not None)
    if labelled is None:
        return Agreement(difference)
    accuracy, best = labelled.accuracy(run), labelled.accuracy(of_model(served))
    if not accuracy >= best - accuracy_drop:
        raise ValueError(
            f"An artefact must reach the accuracy of the model, {best:.2%}, less "
            f"`accuracy_drop`, {accuracy_drop:.2%}; nothing was written. Received: {accuracy:.2%}"
        )
    return Agreement(difference, accuracy, best)


def _compare(served, run, expected, rounding, by_accuracy):
    """The largest difference; raises where it, or its root mean square, is not allowed."""
    largest = 0.0
    for arguments, outputs in expected.batches:
        for want, got in zip(outputs, _run(run, arguments, expected.inputs), strict=True):
            if want.dtype == object:
                continue  # strings: labels, which follow from the scores beside them
            # Infinite outputs, a mask's say, differ from themselves by NaN.
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


def _run(artefact, arguments, inputs):
    try:
        return artefact(*arguments)
    except ValueError:
        raise
    except Exception as error:  # each runtime has its own
        raise ValueError(
            f"An artefact must run on {inputs}, as the model does; nothing was written. "
            f"Received: {reason(error)}"
        ) from error


def _explained(allowed, difference, rounding, inputs):
    text = (
        f"An artefact must agree with the model on {inputs} to {allowed:.1e}; nothing was "
        f"written. Received: a difference of {difference:.1e}"
    )
    if rounding is not None:
        text += " (root mean square). Pass `check_data=(x, y)` to let the accuracy decide"
    return text


class Labelled:
    """Inputs and targets, and the accuracy on them."""

    def __init__(self, served, check_data):
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
                "`check_data` must hold as many targets as samples. Received: "
                f"{len(self._targets)} targets for {len(self.samples)} samples"
            )

    def accuracy(self, run):
        outputs = [
            self._scores(run(*self._served.arguments(arrays)))
            for arrays in self.samples.in_batches(self._served.batch_size or _ROWS)
        ]
        outputs = np.concatenate(outputs)
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

    def _scores(self, outputs):
        if self._served.class_labels is not None:
            outputs = outputs[sorted(("label", SCORES)).index(SCORES) :]
        if len(outputs) != 1:
            raise ValueError(
                "`check_data` needs a model with one output, to tell its accuracy. "
                f"Received: {len(outputs)} outputs"
            )
        return np.asarray(outputs[0], "float32")


def of_model(served):
    """A callable: the arguments in, the flat list of the model's outputs as arrays out."""

    def run(*arguments):
        return [_as_array(output) for output in keras.tree.flatten(served(*arguments))]

    return run


def _has_nan(output):
    return output.dtype != object and np.isnan(output).any()


def _as_array(output):
    if output.dtype == tf.string:
        return output.numpy()
    return keras.ops.convert_to_numpy(keras.ops.cast(output, "float32"))


def _root_mean_square(values):
    return float(np.sqrt(np.mean(np.square(values)))) if np.size(values) else 0.0


def _tolerance(model):
    """1e-4; where the model computes in half precision, what its roundings can add up to."""
    types = {layer.compute_dtype for layer in find_built_layers(model).values()}
    coarse = [tf.as_dtype(name) for name in types if name in ("float16", "bfloat16")]
    units = [
        16 * float(np.finfo(kind.as_numpy_dtype).eps) if kind != tf.bfloat16 else 2.0**-3
        for kind in coarse
    ]
    return max([TOLERANCE, *units])
