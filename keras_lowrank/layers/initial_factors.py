r"""The factors to start from, made from a Keras kernel initializer.

A kernel initializer matters by how much it scales activations: by its expected energy
`E ||W||_F^2`. A random initializer is therefore read as an energy, and the kernel is never drawn:

    U, V random orthonormal,  S = s I  with  r s^2 = E ||W||_F^2.

U keeps r / n of the energy of an isotropic input and S scales it back up. So in expectation,
activations have the variance that the full-rank layer would give them, at every rank. The spectrum
is flat, so that a truncation has no reason to keep some directions before anything is learned.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank.kernels.matricization import Matricization

# Variance of a unit normal that is cut at two standard deviations.
_TRUNCATED_VARIANCE = 0.7737413

# `(shape, dtype) -> tensor`.
Draw: TypeAlias = Callable[..., Any]


class GivenFactors(keras.initializers.Initializer):
    """Given factors, in place of a kernel initializer.

    Args:
        factors: `(U, S, V)`, arrays.
    """

    def __init__(self, factors: Sequence[np.ndarray]) -> None:
        self.factors = factors


def initial_factors(
    initializer: Draw,
    matricization: Matricization,
    rank: int,
    fans: Sequence[int] | None = None,
) -> Sequence[Draw]:
    """Returns the initializers of U, S and V.

    A random initializer (`VarianceScaling` and its relatives, `RandomNormal`, `TruncatedNormal`,
    `RandomUniform`, `Orthogonal`) and `Zeros` give random bases and the energy of the kernel.
    Any other initializer is called once for the kernel, which is cut to its best rank-r
    approximation (SVD). Only then, and only while the layer is built, an n x m array exists.

    Args:
        initializer: `keras.initializers.Initializer` of the kernel.
        matricization: `Matricization` of the kernel.
        rank: int, the rank to start with.
        fans: `(fan_in, fan_out)` of the kernel, or None for those that Keras takes from its shape.

    Returns:
        Three callables `(shape, dtype) -> tensor`.
    """
    if isinstance(initializer, GivenFactors):
        return [lambda shape, dtype=None, f=f: tf.cast(f, dtype) for f in initializer.factors]
    n, m = matricization.shape
    variance = kernel_variance(initializer, matricization.kernel_shape, fans)
    if variance is None:
        return _truncated_kernel(initializer, matricization, rank)
    scale = math.sqrt(n * m * variance / rank)
    seed = getattr(initializer, "seed", None)
    # Two bases from one integer seed must differ, or a square layer would start symmetric.
    other_seed = seed + 1 if isinstance(seed, int) else seed
    return (
        keras.initializers.Orthogonal(seed=seed),
        lambda shape, dtype=None: scale * tf.eye(shape[0], dtype=dtype),
        keras.initializers.Orthogonal(seed=other_seed),
    )


def kernel_variance(
    initializer: Draw, kernel_shape: Sequence[int], fans: Sequence[int] | None = None
) -> float | None:
    """Returns the mean square of the entries that `initializer` draws; None where it is unknown.

    Args:
        initializer: `keras.initializers.Initializer` of the kernel.
        kernel_shape: tuple of int.
        fans: as in `initial_factors`.
    """
    names = keras.initializers
    if isinstance(initializer, names.VarianceScaling):
        fan_in, fan_out = _own_fans(initializer, kernel_shape) or fans or _fans(kernel_shape)
        modes = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        return initializer.scale / max(1.0, modes[initializer.mode])
    if isinstance(initializer, names.RandomNormal) and initializer.mean == 0:
        return initializer.stddev**2
    if isinstance(initializer, names.TruncatedNormal) and initializer.mean == 0:
        return _TRUNCATED_VARIANCE * initializer.stddev**2
    if isinstance(initializer, names.RandomUniform) and initializer.minval == -initializer.maxval:
        return initializer.maxval**2 / 3
    if isinstance(initializer, names.Orthogonal):
        return initializer.gain**2 / max(math.prod(kernel_shape[:-1]), kernel_shape[-1])
    if isinstance(initializer, names.Zeros):
        return 0.0
    return None


def _fans(kernel_shape: Sequence[int]) -> tuple[int, int]:
    """Returns `(fan_in, fan_out)` of the kernel of a dense layer or a convolution."""
    field = math.prod(kernel_shape[:-2])
    return field * kernel_shape[-2], field * kernel_shape[-1]


def _own_fans(initializer: Draw, kernel_shape: Sequence[int]) -> list[int] | None:
    """Returns the same for an initializer that names the axes that count, in newer Keras."""
    axes = [getattr(initializer, name, None) for name in ("input_axes", "output_axes")]
    named = [one for one in axes if one is not None]
    if len(named) < 2:
        return None
    return [math.prod(kernel_shape[axis] for axis in one) for one in named]


def _truncated_kernel(initializer: Draw, matricization: Matricization, rank: int) -> Sequence[Draw]:
    @functools.cache
    def factors():
        with tf.init_scope():  # its values are needed, even where the layer is built symbolically
            kernel = initializer(matricization.kernel_shape, dtype="float32")
            matrix = matricization.matrix(keras.ops.convert_to_tensor(kernel))
            matrix = keras.ops.convert_to_numpy(matrix).astype("float64")
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], np.diag(values[:rank]), right[:rank].T

    def take(index):
        return lambda shape, dtype=None: tf.constant(factors()[index], dtype)

    return take(0), take(1), take(2)
