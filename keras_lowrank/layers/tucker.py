"""The factors that a Tucker-2 kernel starts with."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.layers.initial_factors import GivenFactors, kernel_variance
from keras_lowrank.layers.starting_rank import default_tucker_ranks
from keras_lowrank.manifold.tucker_factors import TuckerFactors, tucker_factors_of


def initial_tucker_factors(
    initializer: Callable[..., Any],
    kernel_shape: tuple[int, ...],
    rank: int | None,
    least: int,
    most: int | None,
    dtype: str,
) -> TuckerFactors:
    """Returns the factors of a convolution, with the energy of the kernel as in `initial_factors`.

    The core is random then, so that the singular values of its unfoldings are almost equal.

    Args:
        initializer: `keras.initializers.Initializer` of the kernel.
        kernel_shape: tuple of int, with the channels last.
        rank: int or None, the rank to start with on both sides, or the number of channels where
            that is smaller. None takes `default_tucker_ranks`.
        least: int, the least rank.
        most: int or None, the largest rank.
        dtype: str.
    """
    *window, n, m = kernel_shape
    places = math.prod(window)
    if isinstance(initializer, GivenFactors):
        given = initializer.factors
        parts = [lambda shape, dtype=None, f=f: tf.cast(f, dtype) for f in given]
        return TuckerFactors(parts, n, m, places, given[1].shape[1:], dtype)
    ranks = (rank, rank) if rank else default_tucker_ranks(n, m, places)
    left, right = (max(min(r, most or r), least) for r in ranks)
    # An unfolding of the core has at most as many independent rows as it has columns.
    left = min(left, n, places * min(right, m))
    right = min(right, m, places * left)
    draws = _draws(initializer, kernel_shape, places, (left, right))
    return TuckerFactors(draws, n, m, places, (left, right), dtype)


def _draws(
    initializer: Callable[..., Any],
    kernel_shape: tuple[int, ...],
    places: int,
    ranks: tuple[int, int],
) -> Sequence[Callable[..., Any]]:
    """The initializers of U, S and V."""
    variance = kernel_variance(initializer, kernel_shape)
    if variance is None:
        with tf.init_scope():  # its values are needed, even where the layer is built symbolically
            kernel = np.asarray(initializer(kernel_shape, dtype="float32"), "float64")
        parts = tucker_factors_of(kernel, ranks)
        return [lambda shape, dtype=None, f=f: tf.constant(f, dtype) for f in parts]
    scale = math.sqrt(math.prod(kernel_shape) * variance / (places * ranks[0] * ranks[1]))
    seed = getattr(initializer, "seed", None)
    # Three draws from one integer seed must differ.
    seeds = [seed + i if isinstance(seed, int) else seed for i in range(3)]
    basis = keras.initializers.Orthogonal
    core = keras.initializers.RandomNormal(stddev=scale, seed=seeds[2])
    return basis(seed=seeds[0]), core, basis(seed=seeds[1])
