"""A number of weights, spent on the layers by their singular values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from keras_lowrank.ranks.truncation import Truncation

if TYPE_CHECKING:
    from keras_lowrank.manifold.point import Point


@keras.saving.register_keras_serializable("keras_lowrank")
class Budget(Truncation):
    r"""Spends a number of weights on the layers, by their singular values.

    At every step each layer keeps the singular values `s_i > c ||W||_F`. All layers share c, the
    smallest that the budget pays for. Ranks only fall: start them high.

    The budget falls from the full-rank weights to its target b,

        b(t) = b + (b_full - b) (1 - t / steps)^3,    t = 0 ... steps,

    the cubic schedule of Zhu and Gupta (arXiv:1710.01878), and then stays there. Reach it early:
    the accuracy comes from training at the final ranks. Every layer keeps its `min_rank`, which is
    paid for first.

    Checkpoints saved earlier are larger than the budget. Have callbacks that look for the best
    weights start after `steps`, `EarlyStopping` with `start_from_epoch`.

    Layers whose own truncations are equal budgets share one. Layers with another truncation come
    first, and the budget is spent on what they leave. Where they leave nothing, the others fall to
    their `min_rank` and the model is larger than the budget.

    Args:
        weights: int or None, the target for the whole model, counted as `Compression.factored`
            does: `r (n + m)` for a low-rank layer, and all other kernels.
        compression: float in `[0, 1)` or None, in place of `weights`: the share of the full-rank
            weights to save. 0.95 saves 95% of them.
        steps: int, the number of training steps until the target is reached.

    Raises:
        ValueError: both or none of `weights` and `compression`, or a value outside its range. In
            training: rank 1 in every layer exceeds the budget.

    Example:

    >>> truncation = Budget(compression=0.9, steps=2000)
    """

    def __init__(
        self, *, weights: float | None = None, compression: float | None = None, steps: int
    ) -> None:
        if (weights is None) == (compression is None):
            raise ValueError(
                "A budget needs exactly one of `weights` and `compression`. "
                f"Received: weights={weights!r}, compression={compression!r}"
            )
        if compression is None:
            _check_budget("weights", weights, "a number in [1, inf)", 1, math.inf)
        else:
            kind = "a share in [0, 1), such as 0.95 to save 95% of the weights"
            _check_budget("compression", compression, kind, 0, 1)
        _check_budget("steps", steps, "an integer in [1, inf)", 1, math.inf, types=int)
        self.weights, self.compression, self.steps = weights, compression, steps

    def target(self, full: float) -> float:
        """The target number of weights, for a model that has `full` of them at full rank."""
        return self.weights or (1.0 - (self.compression or 0.0)) * full

    def unmet(self, steps: int) -> str | None:
        if not 0 < steps < self.steps:
            return None
        return (
            f"their `Budget` is reached after steps={self.steps:,}, but training took {steps:,}; "
            "train longer, or lower its `steps`"
        )

    def together_with(self, other: Truncation) -> bool:
        # By value: after loading, layers that shared a budget have one each.
        return type(other) is type(self) and other.get_config() == self.get_config()

    def plan(
        self, matrices: list[Point], step: tf.Tensor, others: tuple, min_ranks: list[int]
    ) -> list[Truncation]:
        # A Tucker-2 kernel has two sides, each with a rank and its share of the core.
        sides = [_sides(point) for point in matrices]
        sizes = [size for pair in sides for size, _ in pair]
        least_ranks = [rank for rank, pair in zip(min_ranks, sides) for _ in pair]
        full = others[0] + sum(point.full for point in matrices)
        weights = self.target(full)
        least = others[1] + sum(sizes)
        if not tf.is_tensor(least) and weights < least:
            raise ValueError(
                f"A budget must be at least {least:,} weights: rank 1 in every layer and all other "
                f"kernels. Received: {self.get_config()}, which is {weights:,.0f}"
            )
        goal = tf.maximum(tf.cast(weights - others[1], tf.float32), 0.0)
        remaining = tf.maximum(1.0 - step / self.steps, 0.0)
        start = tf.cast(full - others[0], tf.float32)
        allowed = goal + tf.maximum(start - goal, 0.0) * remaining**3
        energies = [energy for pair in sides for _, energy in pair]
        shares = [
            tf.sort(tf.math.divide_no_nan(e, tf.reduce_sum(e)), direction="DESCENDING")[least:]
            for e, least in zip(energies, least_ranks)
        ]
        left = allowed - sum(size * least for size, least in zip(sizes, least_ranks))
        more = spend(shares, sizes, left)
        caps = iter([least + rank for least, rank in zip(least_ranks, more)])
        return [_Capped(*(next(caps) for _ in pair)) for pair in sides]

    def rank(self, singular_values: tf.Tensor, current: tf.Tensor) -> tf.Tensor:
        return current

    def get_config(self) -> dict[str, Any]:
        return {"weights": self.weights, "compression": self.compression, "steps": self.steps}


def _normalized(core):
    """The core with a largest entry of 1, so that its squares stay in the range of float32."""
    return tf.math.divide_no_nan(core, tf.reduce_max(tf.abs(core)))


def _sides(point):
    """`(weights that a singular value costs, energies of the singular values)`, one a rank."""
    n, m = point.U.shape[0], point.V.shape[0]
    energies = tf.square(_normalized(point.S))
    if len(energies.shape) == 2:
        # A step leaves the core (nearly) diagonal, so its column norms are the singular values.
        return [(n + m, tf.reduce_sum(energies, axis=0))]
    # Full steps leave orthogonal slices on both sides, whose norms are the singular values. Half of
    # the core counts for each side: together, the weights at the present ranks.
    half = 0.5 * tf.cast(tf.size(point.S), tf.float32)
    return [
        (basis.shape[0] + half / tf.cast(tf.shape(basis)[1], tf.float32), energy)
        for basis, energy in (
            (point.U, tf.reduce_sum(energies, axis=(0, 2))),
            (point.V, tf.reduce_sum(energies, axis=(0, 1))),
        )
    ]


class _Capped(Truncation):
    """Caps the rank of a layer for one step, or both ranks of a Tucker-2 kernel."""

    grows = False

    def __init__(self, cap, other=None):
        self._cap, self._other = cap, other

    def for_side(self, side):
        return _Capped((self._cap, self._other)[side])

    def rank(self, singular_values, current):
        return tf.minimum(current, self._cap)


def spend(shares: list[tf.Tensor], sizes: list[int], allowed: tf.Tensor | float) -> list[tf.Tensor]:
    """The ranks that a number of weights pays for, largest shares first.

    Args:
        shares: list of float tensors, one a layer: the share of each singular value in the layer's
            energy `||W||_F^2`.
        sizes: list of int, the weights that one singular value of each layer costs.
        allowed: float or scalar tensor, the number of weights.

    Returns:
        List of int32 scalar tensors, 0 for a layer that gets nothing.
    """
    # float64 counts the weights of a large model exactly.
    costs = [tf.fill(tf.shape(s), tf.cast(size, tf.float64)) for s, size in zip(shares, sizes)]
    owners = tf.concat([tf.fill(tf.shape(s), index) for index, s in enumerate(shares)], axis=0)
    order = tf.argsort(tf.concat(shares, axis=0), direction="DESCENDING", stable=True)
    spent = tf.cumsum(tf.gather(tf.concat(costs, axis=0), order))
    count = tf.math.count_nonzero(spent <= tf.cast(allowed, tf.float64))
    paid = tf.gather(owners, order)[:count]
    return [tf.math.count_nonzero(paid == i, dtype=tf.int32) for i in range(len(shares))]


def _check_budget(name, value, kind, low, high, types=(int, float)):
    number = isinstance(value, types) and not isinstance(value, bool)
    if not number or not low <= value < high:
        raise ValueError(f"`{name}` of a budget must be {kind}. Received: {name}={value!r}")
