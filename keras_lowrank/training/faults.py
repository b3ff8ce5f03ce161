"""Values that are not finite: records the first one in a step, and raises it on the host."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lowrank.manifold import row_sparse
from keras_lowrank.outlined import outlined


class FaultRecord:
    """Records the first fault of a traced step, usually a non-finite value, for the host to raise.

    A step cannot raise: an assertion beside an assignment is not ordered before it, and vanishes
    under XLA. After a fault all steps change nothing: whenever the host calls `pop_error`, the
    state is the one before the bad step.
    """

    def __init__(self) -> None:
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
        self._causes: list[Any] = []

    @property
    def clear(self) -> tf.Tensor:
        """Scalar bool tensor: nothing was recorded."""
        return self._step < 0

    def record(
        self,
        fatal: tf.Tensor,
        checks: dict[Callable[[int], Exception], tf.Tensor],
        places: list[tuple[str, Any]],
        step: tf.Tensor,
    ) -> None:
        """Records the first failed check or non-finite value, if `fatal` is true.

        Args:
            fatal: scalar bool tensor.
            checks: dict from a callable `(step) -> Exception` to a scalar bool tensor.
            places: list of `(place, tensors)`, a str and a list of tensors or None that should be
                finite. Evaluated only if `fatal` is true.
            step: integer scalar tensor, the number of completed steps.
        """
        self._causes = [*checks, *(place for place, _ in places), "the sum of all values"]
        new = fatal & self.clear

        def first():
            axes: dict[int, tf.Tensor] = {}
            good = [*checks.values(), *(_all_finite(values, axes) for _, values in places), False]
            return tf.argmin(tf.cast(tf.stack(good), tf.int32), output_type=tf.int64)

        place = tf.cond(new, outlined(first), lambda: tf.identity(self._place))
        self._place.assign(place)
        self._step.assign(tf.where(new, tf.cast(step, tf.int64) + 1, self._step))

    def read_step(self) -> tf.Tensor:
        """The step of the recorded fault, or -1, without waiting for the device."""
        return self._step.read_value()

    def pop_error(self, step: tf.Tensor | None = None) -> Exception | None:
        """The recorded error or None, and clears the record.

        Args:
            step: the result of an earlier `read_step`; None reads it now.
        """
        number = int((self.read_step() if step is None else step).numpy())
        if number < 0:
            return None
        cause = self._causes[int(self._place.numpy())]
        self._step.assign(-1)
        if callable(cause):
            return cause(number)
        return FloatingPointError(
            f"A value that is not finite (NaN or Inf) came up in {cause} at training step "
            f"{number}. The step was discarded: weights, optimizer and statistics are those before "
            "it, and can be saved. Look for NaN or Inf in the data of that step, or lower the "
            "learning rate."
        )


def are_finite(structure: Any) -> tf.Tensor:
    """Scalar bool tensor: every entry of every tensor is finite. None counts as finite.

    It reads their sum once; a sum that overflows counts as not finite.
    """
    return tf.math.is_finite(total(structure))


def total(structure: Any) -> tf.Tensor:
    """A sum of all entries of all tensors, not finite if one of them is not."""
    tensors = [tensor for tensor in tf.nest.flatten(structure) if tensor is not None]
    return tf.add_n([tf.zeros([]), *map(_sum, tensors)])


def _all_finite(structure, axes):
    """`are_finite` in fewer operations, but slower; `axes` caches constants by rank."""
    sums = []
    for tensor in tf.nest.flatten(structure):
        if tensor is not None:
            values = row_sparse.values(tensor)
            rank = values.shape.rank
            if rank not in axes:
                axes[rank] = tf.constant(np.arange(rank, dtype="int32"))
            sums.append(_as_float32(tf.raw_ops.Sum(input=values, axis=axes[rank])))
    return tf.math.is_finite(tf.add_n(sums) if sums else 0.0)


def _sum(tensor):
    tensor = row_sparse.values(tensor)
    if tensor.dtype != tf.float64:
        tensor = tf.cast(tensor, tf.float32)
    if tensor.shape.rank == 2:
        # The product with a row of ones is twice as fast as a reduction of a tall block.
        tensor = tf.matmul(tf.ones([1, tf.shape(tensor)[0]], tensor.dtype), tensor)
    return _as_float32(tf.reduce_sum(tensor))


def _as_float32(value):
    """A sum in float32. A float64 sum may overflow there: it becomes 0, or NaN if not finite."""
    return tf.cast(value - value if value.dtype == tf.float64 else value, tf.float32)


def poisoned(gradient: row_sparse.Block | None, finite: tf.Tensor) -> row_sparse.Block | None:
    """The gradient if `finite` is true, else NaN."""
    if gradient is None:
        return None
    values = row_sparse.values(gradient)
    values = tf.where(finite, values, tf.cast(float("nan"), values.dtype))
    return row_sparse.with_values(gradient, values)
