"""A number of weights, spent on the layers by their singular values."""

import math

import keras
import tensorflow as tf

from keras_lowrank.ranks.truncation import Truncation


@keras.saving.register_keras_serializable("keras_lowrank")
class Budget(Truncation):
    r"""Spends a number of weights on the layers, by their singular values.

    At every step each layer keeps the singular values `s_i > c ||W||_F`, with the smallest common c
    that the budget pays for: what is cut is small beside the layer that it is cut from. (Divided
    by the weights that a value costs, `n + m`, or by their root, the same budget was spent on
    small layers, and LeNet5 with 2.3% of its weights was 1.5 points and more behind.)
    So ranks only fall: start them high (LeNet5 with 2.9% of its weights, one seed: from half of the
    ranks 97.9, from more in the largest layer 98.6 as before). The budget itself falls from the
    full-rank weights to what was asked for,

        b(t) = b + (b_full - b) (1 - t / steps)^3,    t = 0 ... steps,

    fast at first and slowly towards its end (the cubic of Zhu and Gupta, arXiv:1710.01878), and is
    kept from then on. Let it be met early: what counts is the training at the ranks that stay
    (LeNet5 with 2.3% of its weights, 10 epochs, met after 60, 40, 25 and 15% of them: 97.6, 98.1,
    98.3 and 98.1%). Every layer keeps its `min_rank`, which is paid for first, whatever the budget.

    Weights from before it is met have ranks from before: a callback that keeps the best of them, as
    `EarlyStopping(restore_best_weights=True)` and `ModelCheckpoint(save_best_only=True)` do, should
    begin after `steps` (`start_from_epoch` of the first).

    Given to some layers as their own truncation, equal budgets are one, that these layers share.
    Layers with another truncation of their own come first: the budget is for all weights, and is
    spent on what they leave of it at each step; where they leave nothing, every other layer has its
    `min_rank` and the model is larger than the budget.

    Args:
        weights: int or None, the number of weights of the whole model to arrive at, counted as
            `Compression.factored` does: `r (n + m)` a low-rank layer, and all other kernels.
        compression: float in `[0, 1)` or None, in its place: the share of the full-rank weights to
            save. 0.95 saves 95% of them.
        steps: int, the number of training steps until it is met.

    Raises:
        ValueError: both or none of `weights` and `compression`, or one outside its range; in
            training, a budget that rank 1 everywhere exceeds.

    Example:

    >>> truncation = Budget(compression=0.9, steps=2000)
    """

    def __init__(self, *, weights=None, compression=None, steps):
        if (weights is None) == (compression is None):
            raise ValueError(
                "A budget is either `weights` or `compression`. "
                f"Received: weights={weights!r}, compression={compression!r}"
            )
        if compression is None:
            _check_budget("weights", weights, "a number in [1, inf)", 1, math.inf)
        else:
            kind = "a share in [0, 1), as 0.95 to save 95% of the weights"
            _check_budget("compression", compression, kind, 0, 1)
        _check_budget("steps", steps, "an integer in [1, inf)", 1, math.inf, types=int)
        self.weights, self.compression, self.steps = weights, compression, steps

    def target(self, full):
        """The number of weights to arrive at, for a model of so many at full rank."""
        if self.weights is not None:
            return self.weights
        return (1.0 - self.compression) * full

    def unmet(self, steps):
        if not 0 < steps < self.steps:
            return None
        return (
            f"their `Budget` is met after steps={self.steps:,}, and training has made {steps:,}; "
            "train on, or give it fewer"
        )

    def together_with(self, other):
        # By value: after loading, layers that shared a budget have one each.
        return type(other) is type(self) and other.get_config() == self.get_config()

    def plan(self, matrices, step, others, min_ranks):
        sizes = [f.U.shape[0] + f.V.shape[0] for f in matrices]
        full = others[0] + sum(f.U.shape[0] * f.V.shape[0] for f in matrices)
        weights = self.target(full)
        least = others[1] + sum(sizes)
        if not tf.is_tensor(least) and weights < least:
            raise ValueError(
                f"A budget must be at least {least:,} weights, which rank 1 in every layer takes "
                f"with all other kernels. Received: {self.get_config()}, which is {weights:,.0f}"
            )
        goal = tf.maximum(tf.cast(weights - others[1], tf.float32), 0.0)
        to_go = tf.maximum(1.0 - step / self.steps, 0.0)
        start = tf.cast(full - others[0], tf.float32)
        allowed = goal + tf.maximum(start - goal, 0.0) * to_go**3
        # A step leaves a core diagonal, or nearly so while all of its rank is kept; then, and for
        # one that is diagonal up to a rotation, its columns are as long as the singular values.
        energies = [tf.reduce_sum(tf.square(_in_own_unit(f.S)), axis=0) for f in matrices]
        shares = [
            tf.sort(tf.math.divide_no_nan(e, tf.reduce_sum(e)), direction="DESCENDING")[least:]
            for e, least in zip(energies, min_ranks)
        ]
        left = allowed - sum(size * least for size, least in zip(sizes, min_ranks))
        more = spend(shares, sizes, left)
        return [_Capped(least + rank) for least, rank in zip(min_ranks, more)]

    def rank(self, singular_values, current):
        return current

    def get_config(self):
        return {"weights": self.weights, "compression": self.compression, "steps": self.steps}


def _in_own_unit(core):
    """A core whose largest entry is 1: float32 need not hold the squares of its own."""
    return tf.math.divide_no_nan(core, tf.reduce_max(tf.abs(core)))


class _Capped(Truncation):
    """At most a rank that was allotted to a layer for one step."""

    grows = False

    def __init__(self, cap):
        self._cap = cap

    def rank(self, singular_values, current):
        return tf.minimum(current, self._cap)


def spend(shares, sizes, allowed):
    """The ranks that a number of weights pays for, largest shares first.

    Args:
        shares: list of float tensors: for each layer, what each of its singular values has of the
            layer's energy `||W||_F^2`.
        sizes: list of int, the weights that a singular value of each layer costs.
        allowed: float or scalar tensor, the number of weights.

    Returns:
        List of int32 scalar tensors. A layer that nothing is left for has rank 0.
    """
    # In float64, which counts the weights of a large model to the last one.
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
