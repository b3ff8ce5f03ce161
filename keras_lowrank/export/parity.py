"""Does an artefact compute what the model computes? Asked before it is put in place."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.export.samples import Samples
from keras_lowrank.export.served import SCORES
from keras_lowrank.faults import Snapshot
from keras_lowrank.layers.low_rank_layer import find_built_layers

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


def check(served, run, quantization=None, samples=None, check_data=None, accuracy_drop=0.01):
    """Compares an artefact with the model; see `LowRankModel.export` for the rules.

    Args:
        served: `Served`.
        run: callable, the artefact: arguments in, flat list of arrays out.
        quantization: str or None.
        samples: `Samples` to compare on, or None for random input.
        check_data: `(x, y)` or None.
        accuracy_drop: float, how much lower than the model's the accuracy may be.

    Returns:
        `Agreement`.

    Raises:
        ValueError: they differ by more than the rule allows.
    """
    labelled = None if check_data is None else _Labelled(served, check_data)
    if samples is None and quantization is not None and labelled is not None:
        samples = labelled.samples
    # A stateful layer goes on in both; the model's is then put back.
    states = Snapshot(keras_internals.states(served.model))
    try:
        difference = _compare(served, run, quantization, samples, labelled is not None)
    finally:
        states.restore()
    if labelled is None:
        return Agreement(difference)
    accuracy, expected = labelled.accuracy(run), labelled.accuracy(_of_model(served))
    if not accuracy >= expected - accuracy_drop:
        raise ValueError(
            f"An artefact must reach the accuracy of the model, {expected:.2%}, less "
            f"`accuracy_drop`, {accuracy_drop:.2%}; nothing was written. Received: {accuracy:.2%}"
        )
    return Agreement(difference, accuracy, expected)


def _compare(served, run, quantization, samples, by_accuracy):
    """The largest difference; raises where it, or its root mean square, is not allowed."""
    random = np.random.default_rng(0)
    largest = 0.0
    for batch in _BATCHES if quantization is None else (*_BATCHES, 32):
        if samples is None:
            arguments = served.random_arguments(batch, random)
        else:
            arguments = served.arguments(samples.first(served.batch_size or batch))
        expected = _of_model(served)(*arguments)
        for want, got in zip(expected, run(*arguments), strict=True):
            if want.dtype == object:
                continue  # strings: labels, which follow from the scores beside them
            gap = np.abs(want - np.asarray(got, "float32"))
            difference = np.max(gap, initial=0.0)
            largest = max(largest, float(difference))
            if quantization is None:
                allowed = _tolerance(served.model) * max(1.0, np.max(np.abs(want), initial=0.0))
            elif not by_accuracy:
                allowed = ROUNDING[quantization] * _root_mean_square(want)
                difference = _root_mean_square(gap)
            else:
                allowed = np.inf
            if not difference <= allowed:
                raise ValueError(_explained(allowed, difference, quantization, samples))
    return largest


def _explained(allowed, difference, quantization, samples):
    on = "random input" if samples is None else "the samples"
    text = (
        f"An artefact must agree with the model on {on} to {allowed:.1e}; nothing was written. "
        f"Received: a difference of {difference:.1e}"
    )
    if quantization is not None:
        text += " (root mean square). Pass `check_data=(x, y)` to let the accuracy decide"
    return text


class _Labelled:
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


def _of_model(served):
    def run(*arguments):
        return [_as_array(output) for output in keras.tree.flatten(served(*arguments))]

    return run


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
