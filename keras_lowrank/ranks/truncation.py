"""Truncation rules: from the singular values of a layer to its rank."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

if TYPE_CHECKING:
    from keras_lowrank.manifold.point import Point


_SAMPLES = 32  # of a schedule, to see whether it was ever more than 0


class Truncation:
    """Decides how many singular values a layer keeps after a step.

    Subclass it to write a rule: implement `rank`, and `get_config` where there is something to
    save. Pass it to `compile` for all layers, or to one layer.

    Attributes:
        grows: bool, whether ranks may grow. If so, `RankAdaptive` tries out directions beyond the
            rank.

    Example, a rule that keeps the singular values above a share of the largest:

    >>> @keras.saving.register_keras_serializable("my_package")
    ... class Above(Truncation):
    ...     def __init__(self, share):
    ...         self.share = share
    ...     def rank(self, singular_values, current):
    ...         kept = singular_values > self.share * singular_values[0]
    ...         return tf.math.count_nonzero(kept, dtype=tf.int32)
    ...     def get_config(self):
    ...         return {"share": self.share}
    >>> values = tf.constant([2.0, 1.0, 0.1])
    >>> int(Above(0.1).rank(values, current=3))
    2
    >>> int(Policy(Above(0.1), min_rank=3).rank(values, current=3))
    3
    """

    grows: bool = True

    def together_with(self, other: Truncation) -> bool:
        """Whether one call of `plan` covers the layers of this truncation and of `other`."""
        return other is self

    def plan(
        self, matrices: list[Point], step: tf.Tensor, others: tuple, min_ranks: list[int]
    ) -> list[Truncation]:
        """Returns the truncations of one step, one for each matrix.

        Override it for a rule that changes during training, or that compares layers.

        Args:
            matrices: list of `Point`, all matrices with this truncation.
            step: scalar float tensor, the number of the step: 1, 2, ...
            others: `(full, factored)`, the number of all other weights of the model, at full rank
                and at the present ranks.
            min_ranks: list of int, the least rank of every matrix; the caller applies it.
        """
        return [self] * len(matrices)

    def checks(self) -> dict[Callable[[int], Exception], tf.Tensor]:
        """Returns the conditions that a planned truncation must meet.

        Returns:
            Dict from a callable `(step) -> Exception` to a scalar bool tensor. A step where one is
            false changes nothing, and the exception is raised.
        """
        return {}

    def unmet(self, steps: int) -> str | None:
        """Says what a rule that changes during training has not reached after `steps` steps.

        Returns:
            The end of a sentence, for a warning after `fit`; None if all was reached.
        """
        return None

    def rank(self, singular_values: tf.Tensor, current: tf.Tensor) -> tf.Tensor:
        """Returns the rank to keep.

        Args:
            singular_values: tensor, shape `(k,)`, descending.
            current: int32 scalar tensor, the rank before the step.

        Returns:
            int32 scalar tensor. The caller applies the bounds `min_rank` and `max_rank`.
        """
        # Abstract: there is no rank to fall back on.
        raise NotImplementedError(f"{type(self).__name__} must implement `rank`.")

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Truncation:
        return cls(**config)


@keras.saving.register_keras_serializable("keras_lowrank")
class Tolerance(Truncation):
    r"""Keeps the smallest rank whose tail is within a tolerance.

    The smallest `r` with `||(s_{r+1}, s_{r+2}, ...)||_2 <= theta`, where `theta = tau ||s||_2`
    (relative, so `||W_after - W_before||_F <= tau ||W_before||_F`) or `theta = tau` (absolute),
    with `tau = tolerance`: the rule of Algorithm 1 in arXiv:2205.13571.

    Args:
        tolerance: float, in `[0, 1)` when relative, at least 0 when absolute. 0 cuts exact zeros
            only. Or a schedule: a `keras.optimizers.schedules.LearningRateSchedule`, or any
            callable from the number of the step to a number. A schedule that rises from 0 cuts
            nothing before training has learned it.
        relative: bool. Measure the tail relative to `||W||_F`. Defaults to `True`.

    Raises:
        ValueError: `tolerance` is outside its range. A schedule raises it in training, and the
            step where it does so is discarded.

    Example:

    >>> int(Tolerance(0.3).rank(tf.constant([2.0, 1.0, 0.5]), current=3))
    2
    >>> rising = Tolerance(keras.optimizers.schedules.PolynomialDecay(0.0, 1000, 0.2))
    """

    _schedule: Tolerance | None = None  # for the tolerance of one step, the one it comes from

    def __init__(
        self, tolerance: float | Callable[[tf.Tensor], Any], relative: bool = True
    ) -> None:
        if isinstance(tolerance, dict):
            tolerance = keras.saving.deserialize_keras_object(tolerance)
        if not callable(tolerance):
            number = isinstance(tolerance, numbers.Real) and not isinstance(tolerance, bool)
            within = number and math.isfinite(tolerance) and tolerance >= 0
            if not within or (relative and tolerance >= 1):
                raise _outside_its_range(relative, f"tolerance={tolerance!r}")
            tolerance = float(tolerance)
        self.tolerance: Any = tolerance
        self.relative = bool(relative)

    def plan(
        self, matrices: list[Point], step: tf.Tensor, others: tuple, min_ranks: list[int]
    ) -> list[Truncation]:
        if not callable(self.tolerance):
            return [self] * len(matrices)
        now = copy.copy(self)
        # As for a learning rate, the argument is the number of completed steps.
        now.tolerance = tf.convert_to_tensor(self.tolerance(step - 1.0))
        now._schedule = self
        return [now] * len(matrices)

    def checks(self) -> dict[Callable[[int], Exception], tf.Tensor]:
        if self._schedule is None:
            return {}
        tau = tf.cast(self.tolerance, tf.float64)
        below = tau < 1.0 if self.relative else tf.math.is_finite(tau)
        return {self._schedule._error_at: (tau >= 0.0) & below}

    def unmet(self, steps: int) -> str | None:
        if not callable(self.tolerance) or not steps:
            return None
        samples = {index * (steps - 1) // _SAMPLES for index in range(_SAMPLES + 1)}
        if any(float(self.tolerance(tf.constant(float(step)))) > 0.0 for step in sorted(samples)):
            return None
        return f"the schedule of their tolerance was 0 at all of the {steps:,} training steps"

    def _error_at(self, step):
        tau = float(self.tolerance(tf.constant(step - 1.0)))
        return _outside_its_range(
            self.relative, f"tolerance={tau} at training step {step}, which was discarded"
        )

    def rank(self, singular_values: tf.Tensor, current: tf.Tensor) -> tf.Tensor:
        # Relative to the largest, whose square may overflow float32. Summed from the smallest up:
        # faint tails would vanish in the rounding of large heads.
        unit = singular_values[0]
        shares = tf.math.divide_no_nan(singular_values, unit)
        tails = tf.sqrt(tf.cumsum(tf.square(shares), reverse=True))
        # A Python number takes the type of a tensor exactly; `tf.cast` rounds it to float32 first.
        tau = self.tolerance
        tau = tf.cast(tau, unit.dtype) if tf.is_tensor(tau) else tau
        theta = tau * tails[0] if self.relative else tau / unit
        # tails[i] is the error of rank i.
        return tf.math.count_nonzero(tails > theta, dtype=tf.int32)

    def get_config(self) -> dict[str, Any]:
        tolerance = self.tolerance
        if callable(tolerance):
            tolerance = keras.saving.serialize_keras_object(tolerance)
        return {"tolerance": tolerance, "relative": self.relative}


@keras.saving.register_keras_serializable("keras_lowrank")
class KeepRank(Truncation):
    """Keeps the present rank, as `LowRankModel.freeze_ranks` does.

    Example:

    >>> layer = LowRankDense(8, rank=4, truncation=KeepRank())  # others may adapt
    """

    grows = False

    def rank(self, singular_values: tf.Tensor, current: tf.Tensor) -> tf.Tensor:
        return current


def _outside_its_range(relative, received):
    rule = "A relative `tolerance` must be in [0, 1)"
    if not relative:
        rule = "An absolute `tolerance` must be a finite number >= 0"
    return ValueError(f"{rule}, or a schedule of such numbers. Received: {received}")


def get_truncation(identifier: Truncation | float | dict) -> Truncation:
    """Returns the `Truncation` of an instance, of a relative tolerance or of a config."""
    if isinstance(identifier, Truncation):
        return identifier
    if isinstance(identifier, dict):
        return keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, numbers.Real) and not isinstance(identifier, bool):
        return Tolerance(identifier)
    raise ValueError(
        "`truncation` must be a number (a relative tolerance in [0, 1)) or a "
        f"`keras_lowrank.Truncation`. Received: truncation={identifier!r}"
    )
