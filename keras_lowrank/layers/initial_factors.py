r"""Factors to start from, out of a Keras kernel initializer.

What matters in a kernel initializer is how much it scales activations: its expected energy
`E ||W||_F^2`. A random initializer is therefore read as an energy, and the kernel is never drawn:

    U, V random orthonormal,  S = s I  with  r s^2 = E ||W||_F^2.

An isotropic input loses all but r / n of its energy in U and gets it back in S, so activations
keep the variance that the full-rank layer would have given them, at every rank, in expectation.
The spectrum is flat: one that falls as 1/i, of the same energy, tells a truncation what to keep
before anything is learned (under a budget LeNet5's first layer fell to rank 1, and 11% accuracy).
"""

import functools
import math

import keras
import numpy as np
import tensorflow as tf

# Variance of a unit normal that is cut at two standard deviations.
_TRUNCATED_VARIANCE = 0.7737413


class GivenFactors(keras.initializers.Initializer):
    """Factors that exist already, in the place of a kernel that would be drawn.

    Args:
        factors: `(U, S, V)`, arrays.
    """

    def __init__(self, factors):
        self.factors = factors


def initial_factors(initializer, matricization, rank, fans=None):
    """Returns the initializers of U, S and V, callables `(shape, dtype) -> tensor`.

    A random initializer (`VarianceScaling` and its relatives, `RandomNormal`, `TruncatedNormal`,
    `RandomUniform`, `Orthogonal`) and `Zeros` give random bases and the energy of the kernel.
    Any other initializer means one definite matrix, which is drawn once and cut to its best
    rank-r approximation (SVD); only then, and only while the layer is built, an n x m array exists.

    Args:
        initializer: `keras.initializers.Initializer` of the kernel.
        matricization: `Matricization`, how the kernel is a matrix.
        rank: int, the rank to start with.
        fans: `(fan_in, fan_out)` of the kernel, or None for those that Keras tells from its shape.
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


def kernel_variance(initializer, kernel_shape, fans=None):
    """The mean square of the entries that `initializer` draws, or None where it is not known."""
    names = keras.initializers
    if isinstance(initializer, names.VarianceScaling):
        fan_in, fan_out = _own_fans(initializer, kernel_shape) or fans or _fans(kernel_shape)
        fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        return initializer.scale / max(1.0, fans[initializer.mode])
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


def _fans(kernel_shape):
    """`(fan_in, fan_out)` of a kernel of a dense layer or a convolution."""
    field = math.prod(kernel_shape[:-2])
    return field * kernel_shape[-2], field * kernel_shape[-1]


def _own_fans(initializer, kernel_shape):
    """The same, where the initializer names the axes that count, as newer ones of Keras may."""
    axes = [getattr(initializer, name, None) for name in ("input_axes", "output_axes")]
    if None in axes:
        return None
    return [math.prod(kernel_shape[axis] for axis in one) for one in axes]


def _truncated_kernel(initializer, matricization, rank):
    @functools.cache
    def factors():
        with tf.init_scope():  # its numbers are needed, also where a layer is built symbolically
            kernel = initializer(matricization.kernel_shape, dtype="float32")
            matrix = matricization.matrix(keras.ops.convert_to_tensor(kernel))
            matrix = keras.ops.convert_to_numpy(matrix).astype("float64")
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], np.diag(values[:rank]), right[:rank].T

    def take(index):
        return lambda shape, dtype=None: tf.constant(factors()[index], dtype)

    return take(0), take(1), take(2)
