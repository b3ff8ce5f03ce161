"""Who decides the rank: truncation policies, from singular values to a number."""

import math
from typing import NamedTuple

import keras
import tensorflow as tf


class Truncation:
    """Decides how many singular values of a layer are kept after a step.

    Subclass it for a rule of your own: implement `rank`, and `get_config` where there is
    something to save.

    Attributes:
        by_tail: bool. Whether the rank depends on the singular values that it does not keep
            through their norm alone. They may then be given summed up in one last value, and most
            steps need no singular value decomposition of the augmented core.
    """

    by_tail = False

    def rank(self, singular_values, current):
        """Returns the rank to keep.

        Args:
            singular_values: tensor, shape `(k,)`, descending.
            current: int32 scalar tensor, the rank before the step.

        Returns:
            int32 scalar tensor. Bounds (`min_rank`, `max_rank`) are applied by the caller.
        """
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
    (relative, so `||W_after - W_before||_F <= tau ||W_before||_F`) or `theta = tau` (absolute).
    It is the rule of Algorithm 1 in arXiv:2205.13571.

    Args:
        tau: float, the tolerance, without unit when relative. `0 <= tau < 1` when relative,
            `tau >= 0` when absolute. 0 cuts exact zeros only.
        relative: bool. Measure the tail relative to `||W||_F`. Defaults to `True`.

    Raises:
        ValueError: `tau` outside its range.

    Example:

    >>> int(Tolerance(0.3).rank(tf.constant([2.0, 1.0, 0.5]), current=3))
    2
    """

    by_tail = True

    def __init__(self, tau, relative=True):
        number = isinstance(tau, (int, float)) and not isinstance(tau, bool)
        if not number or not math.isfinite(tau) or tau < 0 or (relative and tau >= 1):
            rule = "in [0, 1)" if relative else "a finite number >= 0"
            kind = "relative" if relative else "absolute"
            raise ValueError(f"A {kind} tolerance `tau` must be {rule}. Received: tau={tau!r}")
        self.tau = float(tau)
        self.relative = bool(relative)

    def rank(self, singular_values, current):
        # Summed from the smallest up, so that faint tails are not lost beside large heads.
        tails = tf.sqrt(tf.cumsum(tf.square(singular_values), reverse=True))
        scale = tails[0] if self.relative else tf.ones([], singular_values.dtype)
        theta = tf.cast(self.tau, singular_values.dtype) * scale
        # tails[i] is what is cut when i values are kept.
        return tf.math.count_nonzero(tails > theta, dtype=tf.int32)

    def get_config(self):
        return {"tau": self.tau, "relative": self.relative}


@keras.saving.register_keras_serializable("keras_lowrank")
class KeepRank(Truncation):
    """Keeps the rank that the layer has: what `LowRankModel.freeze_ranks` uses."""

    by_tail = True

    def rank(self, singular_values, current):
        return current


class Policy(NamedTuple):
    """A truncation inside the bounds of one layer.

    Attributes:
        truncation: `Truncation`.
        min_rank: int, the least rank to keep.
        max_rank: int or None, the largest rank to keep.
    """

    truncation: Truncation
    min_rank: int = 1
    max_rank: int | None = None

    @property
    def by_tail(self):
        return self.truncation.by_tail

    @property
    def keeps_rank(self):
        """bool, whether the rank is known to stay before the singular values are."""
        return isinstance(self.truncation, KeepRank)

    def rank(self, singular_values, current):
        available = tf.shape(singular_values)[0]
        most = available if self.max_rank is None else tf.minimum(self.max_rank, available)
        rank = self.truncation.rank(singular_values, current)
        return tf.minimum(tf.maximum(rank, self.min_rank), most)


def get_truncation(identifier):
    """Returns a `Truncation` for one, for a number (a relative tolerance) or a config."""
    if isinstance(identifier, Truncation):
        return identifier
    if isinstance(identifier, dict):
        return keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, (int, float)) and not isinstance(identifier, bool):
        return Tolerance(identifier)
    raise ValueError(
        "`truncation` must be a number (a relative tolerance in [0, 1)) or a "
        f"`keras_lowrank.Truncation`. Received: truncation={identifier!r}"
    )
