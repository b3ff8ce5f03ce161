"""Saves and restores the values of variables."""

from collections.abc import Iterable

import keras
import tensorflow as tf

from keras_lowrank.outlined import outlined


class Snapshot:
    """The values of variables at one moment.

    Args:
        variables: list of Keras variables.
    """

    def __init__(self, variables: Iterable[keras.Variable]) -> None:
        self._saved = [(v, tf.identity(tf.convert_to_tensor(v.value))) for v in variables]

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the snapshot."""
        return [variable for variable, _ in self._saved]

    def restore_unless(self, condition: tf.Tensor, in_replica: bool) -> None:
        """Restores the saved values if the scalar bool tensor `condition` is false.

        Args:
            condition: scalar bool tensor.
            in_replica: bool, whether this is one of several replicas: they must not assign inside a
                `tf.cond`, so it chooses the values first.
        """
        if not in_replica:

            def restore():
                self.restore()
                return tf.constant(True)

            tf.cond(condition, lambda: tf.constant(True), outlined(restore))
            return
        old = [value for _, value in self._saved]
        new = [tf.convert_to_tensor(variable.value) for variable, _ in self._saved]
        if new:
            for variable, value in zip(
                self.variables, tf.cond(condition, lambda: new, lambda: old), strict=True
            ):
                variable.assign(value)

    def restore(self, some: Iterable[keras.Variable] | None = None) -> None:
        """Restores the saved values of all variables, or of some."""
        some = self.variables if some is None else some
        wanted = {id(variable) for variable in some}
        for variable, value in self._saved:
            if id(variable) in wanted:
                variable.assign(value)
