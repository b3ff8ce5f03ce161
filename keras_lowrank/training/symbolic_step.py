"""Finds what a custom `train_step` takes its step on, without data."""

from typing import Any

import keras

from keras_lowrank import keras_internals


class SymbolicStep:
    """A symbolic run of a custom `train_step`, up to the step.

    A custom `train_step` may crop, mix or encode its data before it calls `super().train_step`, or
    take gradients itself and call `optimizer.apply`.
    """

    def __init__(self) -> None:
        self._running = False

    def reached(self, batch: tuple | None = None) -> None:
        """Ends the symbolic run, if there is one: a step begins, on a batch or on gradients."""
        if self._running:
            raise _Reached(None if batch is None else keras_internals.symbolic(batch))

    def run(self, model: keras.Model, data: Any) -> tuple[bool, Any]:
        """Returns `(found, batch)`: whether there is a step, and its symbolic batch or None."""
        self._running = True
        try:
            for _ in range(2):  # variables that a run creates have gradients in the next one only
                try:
                    keras_internals.run_symbolically(model.train_step, data)
                except _Reached as reached:
                    return True, reached.batch
                except Exception:  # no support for symbolic tensors, or an error: its trace raises
                    continue
        finally:
            self._running = False
        return False, None


class _Reached(BaseException):
    """Ends a symbolic run. No `except Exception` of a train step catches it."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch
