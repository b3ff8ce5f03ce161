"""Raises on the host what a traced step has recorded."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import keras_internals
from keras_lowrank.training.faults import FaultRecord


class FaultCheck:
    """Checks a `FaultRecord` after executions; in `fit` one execution late, so nobody waits.

    With `keras.callbacks.TerminateOnNaN` in `fit`, a value that is not finite is no error: the
    callback sees it in the loss, and stops training as in Keras.

    Args:
        model: `LowRankModel`.
        faults: `FaultRecord` of its steps.
    """

    def __init__(self, model: keras.Model, faults: FaultRecord) -> None:
        self._model, self._faults = model, faults
        self._in_fit = self._stops_on_nan = False
        self._unchecked = None

    @contextlib.contextmanager
    def during_fit(self, callbacks: Any) -> Iterator[None]:
        """Around a `fit`, with its argument `callbacks`."""
        found = keras.tree.flatten(getattr(callbacks, "callbacks", callbacks))
        self._stops_on_nan = any(isinstance(c, keras.callbacks.TerminateOnNaN) for c in found)
        self._in_fit = True
        try:
            yield
            self.check_last()
        finally:
            self._stops_on_nan, self._unchecked, self._in_fit = False, None, False

    def check_execution(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Checks an execution; takes its logs, and returns those for callbacks."""
        if not self._in_fit or self._stops_on_nan or self._model.run_eagerly:
            return self.check(logs)
        before, self._unchecked = self._unchecked, self._faults.read_step()
        return logs if before is None else self.check(logs, before)

    def check_last(self) -> None:
        """Checks the last execution of a `fit`."""
        last, self._unchecked = self._unchecked, None
        if last is not None:
            self.check({}, last)

    def check(self, logs: dict[str, Any], fault_step: tf.Tensor | None = None) -> dict[str, Any]:
        """Raises the recorded error, if there is one; arguments as in `check_execution`.

        `fault_step` is a result of `FaultRecord.read_step`, None for the present one.
        """
        error = self._faults.pop_error(fault_step)
        if error is None:
            return logs
        if not (self._stops_on_nan and isinstance(error, FloatingPointError)):
            raise error
        keras_internals.spoil_loss(self._model)
        return {**logs, "loss": np.float32("nan")}
