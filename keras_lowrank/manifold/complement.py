"""What a tall block adds outside the span of a basis, and products with it.

Tall blocks (n x r, n large) only enter matrix products, and only small matrices (r x r) are
factorised. A Householder QR of a tall block would take several times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# A direction below this many units of rounding, relative to the whole block, is noise: the block is
# a sum over a batch and has some ten units of error itself.
_NOISE_UNITS = 256.0


# The finest unit that a float64 Gram matrix resolves, as it squares the condition number: 256 *
# 2^-30 is an order of magnitude above sqrt(eps).
_GRAM_UNIT = 2.0**-30


class Complement(NamedTuple):
    r"""What a block adds outside the span of a basis: `A = B X + Q Y`, with `Q = R T - B C`.

    Q is orthonormal and orthogonal to B. It stays a product: multiplying with R first and the small
    T afterwards is cheaper than forming it.

    Attributes:
        inside: tensor `X = B^T A`, shape `(b, r)`.
        residual: tensor R, shape `(n, r)`: the block without its part in the span of B.
        whitening: tensor T, shape `(r, k)`, `0 <= k <= min(r, n - b)`.
        reorthogonalization: tensor C, shape `(b, k)`: the part of `R T` in the span of B.
        outside: tensor `Y = Q^T A`, shape `(k, r)`.
    """

    inside: tf.Tensor
    residual: tf.Tensor
    whitening: tf.Tensor
    reorthogonalization: tf.Tensor
    outside: tf.Tensor

    def formed(self, basis: tf.Tensor) -> tf.Tensor:
        """Q itself, shape `(n, k)`."""
        return tf.matmul(self.residual, self.whitening) - tf.matmul(basis, self.reorthogonalization)


def complement(block: tf.Tensor, basis: tf.Tensor, static: bool = False) -> Complement:
    r"""Returns the `Complement` of a block to a basis.

    `range([B, Q])` is `range([B, A])`, without the directions that are rounding relative to
    `||A||_F`. Q has no columns when `basis` spans the space, or when `block` is zero or not finite.

    With the eigenvectors `E` of `R^T R = E diag(s^2) E^T`, `T = E / s` and `Y = T^T R^T R`. The
    Gram matrix is in float64: float32 data lose no digits to its squared condition number. A faint
    direction is orthonormal up to (rounding of the block) / (its size), at worst about 1e-2;
    `orthonormalized` checks every new basis. The reorthogonalization removes the rest of B from
    `R T`: "twice is enough" (Giraud, Langou, Rozloznik, van den Eshof, Numer. Math. 101, 2005), and
    the second time works on the small matrices.

    Args:
        block: float tensor `A`, shape `(n, r)`.
        basis: float tensor `B` with orthonormal columns, shape `(n, b)`.
        static: bool. Return `min(r, n - b)` columns in every case, with zeros in place of noise:
            XLA needs shapes that do not depend on values.

    Returns:
        `Complement`.

    Example:

    >>> basis = tf.constant([[1.0], [0.0], [0.0]])
    >>> block = tf.constant([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    >>> added = complement(block, basis)
    >>> tf.matmul(added.residual, added.whitening).shape.as_list()
    [3, 1]
    """
    dtype = block.dtype
    inside = tf.matmul(basis, block, transpose_a=True)
    residual = block - tf.matmul(basis, inside)
    wide = tf.cast(residual, tf.float64)
    gram = tf.matmul(wide, wide, transpose_a=True)
    sizes, directions = _spectrum(gram)
    total = tf.reduce_sum(tf.square(tf.cast(inside, tf.float64))) + tf.linalg.trace(gram)
    noise = _NOISE_UNITS * max(np.finfo(dtype.as_numpy_dtype).eps, _GRAM_UNIT) * tf.sqrt(total)
    distinct = sizes > noise
    first = tf.shape(sizes)[0] - _room(block, basis)
    if static:
        whitening = (
            directions[:, first:] * tf.where(distinct, 1.0 / sizes, tf.zeros_like(sizes))[first:]
        )
    else:
        first = tf.maximum(first, tf.math.count_nonzero(~distinct, dtype=tf.int32))
        whitening = directions[:, first:] / sizes[first:]
    # Y = T^T R^T R, as a product: a transposition takes four times as long here.
    outside = tf.matmul(whitening, gram, transpose_a=True)
    whitening = tf.cast(whitening, dtype)
    reorthogonalization = tf.matmul(tf.matmul(basis, residual, transpose_a=True), whitening)
    return Complement(inside, residual, whitening, reorthogonalization, tf.cast(outside, dtype))


def _room(block, basis):
    """How many columns a block can add to a basis at most."""
    return tf.minimum(tf.shape(block)[1], tf.shape(basis)[0] - tf.shape(basis)[1])


def _spectrum(gram):
    """Square roots of the eigenvalues, ascending, and eigenvectors of a Gram matrix."""
    # On a CPU, eigh raises on NaN, before the step can be discarded.
    gram = tf.where(tf.math.is_finite(tf.reduce_sum(gram)), gram, tf.zeros_like(gram))
    energies, directions = tf.linalg.eigh(gram)
    return tf.sqrt(tf.maximum(energies, 0.0)), directions


def rotate(basis: tf.Tensor, added: Complement, coordinates: tf.Tensor) -> tf.Tensor:
    """Returns `[B, Q] C` for the basis Q of a `Complement`.

    Args:
        basis: tensor `B`, shape `(n, b)`.
        added: `Complement` to it, with Q of shape `(n, k)`.
        coordinates: tensor `C` with orthonormal columns, shape `(b + k, r)`.

    Returns:
        Tensor of shape `(n, r)`.
    """
    # Singular vectors have errors of some ten units of rounding, which would add up over the steps.
    # One small Newton-Schulz step leaves one unit.
    gram = tf.matmul(coordinates, coordinates, transpose_a=True)
    return combine(basis, added, 1.5 * coordinates - 0.5 * tf.matmul(coordinates, gram))


def combine(basis: tf.Tensor, added: Complement, coordinates: tf.Tensor) -> tf.Tensor:
    """Returns `[B, Q] C` for any C; arguments as in `rotate`."""
    size = tf.shape(basis)[1]
    inside, outside = coordinates[:size], coordinates[size:]
    inside -= tf.matmul(added.reorthogonalization, outside)
    return tf.matmul(basis, inside) + tf.matmul(added.residual, tf.matmul(added.whitening, outside))
