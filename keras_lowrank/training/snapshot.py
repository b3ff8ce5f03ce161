"""The values of variables, to go back to."""

import tensorflow as tf

from keras_lowrank.outlined import outlined


class Snapshot:
    """The values of variables at one moment, to go back to.

    Args:
        variables: list of Keras variables.
    """

    def __init__(self, variables):
        self._saved = [(v, tf.identity(tf.convert_to_tensor(v.value))) for v in variables]

    @property
    def variables(self):
        """The variables, as they are now."""
        return [variable for variable, _ in self._saved]

    def restore_unless(self, condition, in_replica):
        """Puts the saved values back where the scalar bool tensor `condition` is false.

        Args:
            condition: scalar bool tensor.
            in_replica: bool, whether this is one of several replicas: there an assignment inside
                of a `tf.cond` is not allowed, and the values are chosen, at no cost, ahead of it.
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

    def restore(self, some=None):
        """Puts the saved values back, of all variables or of some."""
        some = self.variables if some is None else some
        wanted = {id(variable) for variable in some}
        for variable, value in self._saved:
            if id(variable) in wanted:
                variable.assign(value)
