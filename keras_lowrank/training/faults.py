"""Values that are not finite: where the first one is, and what the host hears of it."""

import numpy as np
import tensorflow as tf

from keras_lowrank.manifold import row_sparse
from keras_lowrank.outlined import outlined


class FaultRecord:
    """What went wrong first, and when, written by the step, read by the host.

    As a rule it is the place of a value that is not finite.

    A step cannot raise: an assertion beside an assignment is not ordered before it, and vanishes
    under XLA. It writes its finding here instead, and the host calls `taken`. Once a fault is
    recorded later steps change nothing either, so the state at the error is the one before the
    bad step, however late the host looks.
    """

    def __init__(self):
        with tf.init_scope():
            self._step, self._place = (
                tf.Variable(
                    -1,
                    trainable=False,
                    dtype=tf.int64,
                    name=name,
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                )
                for name in ("fault_step", "fault_place")
            )
        self._findings = []

    @property
    def clear(self):
        """Scalar bool tensor: nothing was recorded."""
        return self._step < 0

    def record(self, fatal, obeyed, places, step):
        """Records the first that is not good where `fatal` is true.

        Args:
            fatal: scalar bool tensor.
            obeyed: dict from a callable `(step) -> Exception` to a scalar bool tensor.
            places: list of `(place, tensors)`, a str and a list of tensors, or None among them,
                that should be finite. Looked at only where `fatal` is true.
            step: integer scalar tensor, number of completed steps.
        """
        self._findings = [*obeyed, *(place for place, _ in places), "the sum of all values"]
        new = fatal & self.clear

        def first():
            axes = {}
            good = [*obeyed.values(), *(_all_finite(held, axes) for _, held in places), False]
            return tf.argmin(tf.cast(tf.stack(good), tf.int32), output_type=tf.int64)

        place = tf.cond(new, outlined(first), lambda: tf.identity(self._place))
        self._place.assign(place)
        self._step.assign(tf.where(new, tf.cast(step, tf.int64) + 1, self._step))

    def look(self):
        """What `taken` takes, as it is now: the device writes it, and nobody waits."""
        return self._step.read_value()

    def taken(self, looked=None):
        """The error that was recorded, FloatingPointError as a rule, or None; it is forgotten.

        Args:
            looked: what an earlier `look` has returned, None for one just now.
        """
        step = int((self.look() if looked is None else looked).numpy())
        if step < 0:
            return None
        found = self._findings[int(self._place.numpy())]
        self._step.assign(-1)
        if callable(found):
            return found(step)
        return FloatingPointError(
            f"A value that is not finite (NaN or Inf) came up in {found} at training step {step}. "
            "Nothing of that step was kept: weights, optimizer and statistics are those before "
            "it, and can be saved. Look for NaN or Inf in the data of that step, or lower the "
            "learning rate."
        )


def are_finite(structure):
    """Scalar bool tensor: every entry of every tensor is finite. None counts as finite.

    By their sum, in one reading pass: a sum that overflows counts as not finite too.
    """
    return tf.math.is_finite(total(structure))


def total(structure):
    """A sum of all entries of all tensors, that is not finite where one of them is not."""
    tensors = [tensor for tensor in tf.nest.flatten(structure) if tensor is not None]
    return tf.add_n([tf.zeros([]), *map(_sum, tensors)])


def _all_finite(structure, axes):
    """The same as `are_finite`, slower, in fewer operations; `axes`, a dict, is filled by rank."""
    sums = []
    for tensor in tf.nest.flatten(structure):
        if tensor is not None:
            values = row_sparse.values(tensor)
            rank = values.shape.rank
            if rank not in axes:
                axes[rank] = tf.constant(np.arange(rank, dtype="int32"))
            sums.append(_told(tf.raw_ops.Sum(input=values, axis=axes[rank])))
    return tf.math.is_finite(tf.add_n(sums) if sums else 0.0)


def _sum(tensor):
    tensor = row_sparse.values(tensor)
    if tensor.dtype != tf.float64:
        tensor = tf.cast(tensor, tf.float32)
    if tensor.shape.rank == 2:
        # The product with a row of ones reads a tall block twice as fast as a reduction does.
        tensor = tf.matmul(tf.ones([1, tf.shape(tensor)[0]], tensor.dtype), tensor)
    return _told(tf.reduce_sum(tensor))


def _told(value):
    """A sum in float32, which need not hold one of float64: 0 then, or NaN if it is not finite."""
    return tf.cast(value - value if value.dtype == tf.float64 else value, tf.float32)


def poisoned(gradient, finite):
    """The gradient where `finite` is true, NaN where it is not."""
    if gradient is None:
        return None
    values = row_sparse.values(gradient)
    values = tf.where(finite, values, tf.cast(float("nan"), values.dtype))
    return row_sparse.with_values(gradient, values)
