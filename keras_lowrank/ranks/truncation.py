"""Who decides the rank: truncation policies, from singular values to a number."""

import copy
import math
import numbers
from typing import NamedTuple

import keras
import tensorflow as tf

_LOOKS = 32  # at a schedule, to see whether it was ever more than 0


class Truncation:
    """Decides how many singular values of a layer are kept after a step.

    Subclass it for a rule of your own: implement `rank`, and `get_config` where there is
    something to save. `compile` takes it for all layers, and each layer for itself.

    Attributes:
        grows: bool. Whether ranks may become larger: then an integrator that can tries out more
            directions than `rank` asks for.

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

    grows = True

    def together_with(self, other):
        """Whether `plan` decides at once for the layers of this truncation and of another one."""
        return other is self

    def plan(self, matrices, step, others, min_ranks):
        """Returns the truncations that hold for one step, one for each matrix.

        Override it for a rule that changes during training, or that looks at several layers.

        Args:
            matrices: list of `Point`, all that this truncation decides for.
            step: scalar float tensor, the number of the step: 1, 2, ...
            others: `(full, factored)`, ints: the weights of the model beside these matrices, at
                full rank and as they are.
            min_ranks: list of int, the least rank of every matrix, which the caller sees to.
        """
        return [self] * len(matrices)

    def checks(self):
        """Returns what must hold for a truncation that was planned, if anything can fail.

        Returns:
            Dict from a callable `(step) -> Exception` to a scalar bool tensor. A step in which one
            is false changes nothing, and is followed by the exception.
        """
        return {}

    def unmet(self, steps):
        """What a rule that changes during training has not done yet after so many steps.

        Returns:
            Text that ends a sentence, said after a `fit`; None where there is nothing to say.
        """
        return None

    def rank(self, singular_values, current):
        """Returns the rank to keep.

        Args:
            singular_values: tensor, shape `(k,)`, descending.
            current: int32 scalar tensor, the rank before the step.

        Returns:
            int32 scalar tensor. Bounds (`min_rank`, `max_rank`) are applied by the caller.
        """
        # Abstract: a truncation is its decision, and there is none to fall back on.
        raise NotImplementedError(f"{type(self).__name__} must implement `rank`.")

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("keras_lowrank")
class Tolerance(Truncation):
    r"""Keeps the smallest rank whose tail is within a tolerance.

    The smallest `r` with `||(s_{r+1}, s_{r+2}, ...)||_2 <= theta`, where `theta = tau ||s||_2`
    (relative, so `||W_after - W_before||_F <= tau ||W_before||_F`) or `theta = tau` (absolute),
    with `tau = tolerance`.
    It is the rule of Algorithm 1 in arXiv:2205.13571.

    Args:
        tolerance: float, in `[0, 1)` when relative, at least 0 when absolute. 0 cuts exact zeros
            only. Or a schedule: a `keras.optimizers.schedules.LearningRateSchedule`, or any
            callable from the number of the step to a number. One that rises from 0 cuts nothing
            before it was learned.
        relative: bool. Measure the tail relative to `||W||_F`. Defaults to `True`.

    Raises:
        ValueError: `tolerance` outside its range; of a schedule, in training, at the first step
            where it is. Nothing of that step is kept.

    Example:

    >>> int(Tolerance(0.3).rank(tf.constant([2.0, 1.0, 0.5]), current=3))
    2
    >>> rising = Tolerance(keras.optimizers.schedules.PolynomialDecay(0.0, 1000, 0.2))
    """

    _planned_by = None  # the scheduled tolerance that this one is of one step

    def __init__(self, tolerance, relative=True):
        if isinstance(tolerance, dict):
            tolerance = keras.saving.deserialize_keras_object(tolerance)
        if not callable(tolerance):
            number = isinstance(tolerance, numbers.Real) and not isinstance(tolerance, bool)
            within = number and math.isfinite(tolerance) and tolerance >= 0
            if not within or (relative and tolerance >= 1):
                raise _outside_its_range(relative, f"tolerance={tolerance!r}")
            tolerance = float(tolerance)
        self.tolerance = tolerance
        self.relative = bool(relative)

    def plan(self, matrices, step, others, min_ranks):
        if not callable(self.tolerance):
            return [self] * len(matrices)
        now = copy.copy(self)
        # As a learning rate, a schedule is asked for the number of steps that were completed.
        now.tolerance = tf.convert_to_tensor(self.tolerance(step - 1.0))
        now._planned_by = self
        return [now] * len(matrices)

    def checks(self):
        if self._planned_by is None:
            return {}
        tau = tf.cast(self.tolerance, tf.float64)
        below = tau < 1.0 if self.relative else tf.math.is_finite(tau)
        return {self._planned_by._error_at: (tau >= 0.0) & below}

    def unmet(self, steps):
        if not callable(self.tolerance) or not steps:
            return None
        looks = {index * (steps - 1) // _LOOKS for index in range(_LOOKS + 1)}
        if any(float(self.tolerance(tf.constant(float(step)))) > 0.0 for step in sorted(looks)):
            return None
        return f"the schedule of their tolerance was 0 at all of the {steps:,} training steps"

    def _error_at(self, step):
        tau = float(self.tolerance(tf.constant(step - 1.0)))
        return _outside_its_range(
            self.relative, f"tolerance={tau} at training step {step}, of which nothing was kept"
        )

    def rank(self, singular_values, current):
        # In units of the largest, whose square float32 need not hold; and summed from the smallest
        # up, so that faint tails are not lost beside large heads.
        unit = singular_values[0]
        shares = tf.math.divide_no_nan(singular_values, unit)
        tails = tf.sqrt(tf.cumsum(tf.square(shares), reverse=True))
        # A number takes the type of a tensor exactly, and by `tf.cast` after a rounding to float32.
        tau = self.tolerance
        tau = tf.cast(tau, unit.dtype) if tf.is_tensor(tau) else tau
        theta = tau * tails[0] if self.relative else tau / unit
        # tails[i] is what is cut when i values are kept.
        return tf.math.count_nonzero(tails > theta, dtype=tf.int32)

    def get_config(self):
        tolerance = self.tolerance
        if callable(tolerance):
            tolerance = keras.saving.serialize_keras_object(tolerance)
        return {"tolerance": tolerance, "relative": self.relative}


@keras.saving.register_keras_serializable("keras_lowrank")
class KeepRank(Truncation):
    """Keeps the rank that the layer has: what `LowRankModel.freeze_ranks` uses."""

    grows = False

    def rank(self, singular_values, current):
        return current


def _outside_its_range(relative, received):
    rule = "A relative `tolerance` must be in [0, 1)"
    if not relative:
        rule = "An absolute `tolerance` must be a finite number >= 0"
    return ValueError(f"{rule}, or a schedule of such numbers. Received: {received}")


def _rank(factors):
    return tf.cast(tf.shape(factors.S)[0], tf.float32)


class Policy(NamedTuple):
    """A truncation inside the bounds of one layer.

    Attributes:
        truncation: `Truncation`.
        min_rank: int, the least rank to keep.
        max_rank: int or None, the largest rank to keep.
        grown_rank: int or None, the largest rank that more directions are tried out at.
    """

    truncation: Truncation
    min_rank: int = 1
    max_rank: int | None = None
    grown_rank: int | None = None

    @property
    def keeps_rank(self):
        """bool, whether the rank is known to stay before the singular values are."""
        return type(self.truncation).rank is KeepRank.rank

    def parts(self):
        """Returns `(kind, tensors)`: policies of one kind decide alike, given the same tensors."""
        attributes = vars(self.truncation)
        tensors = {n: value for n, value in attributes.items() if isinstance(value, tf.Tensor)}
        ranks = {name: getattr(self, name) for name in ("min_rank", "max_rank", "grown_rank")}
        bounds = {n: tf.cast(rank, tf.int32) for n, rank in ranks.items() if rank is not None}
        # Whatever else decides must be the very same object: it need not compare or hash.
        others = frozenset((n, id(value)) for n, value in attributes.items() if n not in tensors)
        kind = type(self.truncation), frozenset(tensors), others, frozenset(bounds)
        return kind, {"truncation": tensors, "bounds": bounds}

    def of_parts(self, tensors):
        """A policy of the same kind, with tensors in the form that `parts` has them in."""
        truncation = copy.copy(self.truncation)
        vars(truncation).update(tensors["truncation"])
        return self._replace(truncation=truncation, **tensors["bounds"])

    def rank(self, singular_values, current):
        """`Truncation.rank`, inside the bounds."""
        rank = self.truncation.rank(singular_values, current)
        most = self.most(tf.shape(singular_values)[0])
        return tf.minimum(tf.maximum(rank, self.min_rank), most)

    def most(self, available):
        """The largest rank that there may be, of so many."""
        return available if self.max_rank is None else tf.minimum(self.max_rank, available)

    def room(self, rank, available):
        """How many directions may be tried out at a rank, of so many that there can be."""
        most = self.most(available)
        most = most if self.grown_rank is None else tf.minimum(self.grown_rank, most)
        return tf.maximum(most - rank, 0)


def plan(policies, matrices, step, others):
    """The policies for one step: those that share a truncation are planned together.

    Args:
        policies: list of `Policy`, one a matrix.
        matrices: list of `Point`.
        step: scalar float tensor, the number of the step: 1, 2, ...
        others: `(full, factored)`, the weights of the model beside these matrices.
    """
    planned, remaining = list(policies), list(range(len(policies)))
    while remaining:
        truncation = policies[remaining[0]].truncation
        group = [i for i in remaining if policies[i].truncation.together_with(truncation)]
        remaining = [i for i in remaining if i not in group]
        outside = [f for i, f in enumerate(matrices) if i not in group]
        full = others[0] + sum(f.U.shape[0] * f.V.shape[0] for f in outside)
        held = others[1] + sum(_rank(f) * (f.U.shape[0] + f.V.shape[0]) for f in outside)
        least = [policies[i].min_rank for i in group]
        now = truncation.plan([matrices[i] for i in group], step, (full, held), least)
        for i, chosen in zip(group, now):
            planned[i] = policies[i]._replace(truncation=chosen)
    return planned


def get_truncation(identifier):
    """Returns a `Truncation` for one, for a number (a relative tolerance) or a config."""
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
