r"""Tucker-2 kernels, their tangent vectors and their truncation.

A kernel of a convolution is a matrix `W_k` of input by output channels at each of K places k of its
window. As a Tucker-2 tensor all places share two bases,

    W_k = U S_k V^T,   U (n x p) and V (m x q) orthonormal, S_k (p x q).

Its unfoldings are the matrices that have all `S_k` side by side, `S_(1)` (p x K q) and `S_(2)`
(q x K p). With `A_k = L_1^-1 S_k` and `B_k = S_k L_2^-T`, `L_i` the Cholesky factor of
`S_(i) S_(i)^T`, the rows of `A_(1)` and of `B_(2)` are orthonormal. A tangent vector is

    X_k = K A_k V^T + U C_k V^T + U B_k L^T,   U^T K = 0,   V^T L = 0,

stored as its three orthogonal parts K, C and L. From "Dynamical tensor approximation" (Koch and
Lubich, SIAM J. Matrix Anal. Appl. 31, 2010), with the parts as in Ceruti, Kusch, Lubich and Sulz
(arXiv:2412.00858), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_lowrank.manifold.decompositions import fix_signs, identity_like
from keras_lowrank.manifold.point import Point
from keras_lowrank.manifold.tangent_vector import TangentVector

# Directions of an unfolding below this many units of rounding, relative to all of it, hardly move
# its basis; nor do those below the second number, which a float64 Gram matrix hardly resolves.
_NOISE_UNITS, _GRAM_UNIT = 1024.0, 1e-7

# The error of a Gram matrix of rows of length 1, in units of rounding a row. Parallel rows have the
# largest: up to 0.27 was seen.
_ERROR_UNITS = 0.5

# Share of its energy that a kept column has over an added one: it decides between equals only.
_PREFERENCE = 1e-13


class TuckerPoint(Point):
    """A Tucker-2 kernel `W_k = U S_k V^T`.

    Attributes:
        U: tensor, shape `(n, p)`, orthonormal columns.
        S: tensor, shape `(K, p, q)`, the core.
        V: tensor, shape `(m, q)`, orthonormal columns.
    """

    __slots__ = ()

    @property
    def full(self) -> int:
        places = self.S.shape[0]
        return places * super().full

    @property
    def factored(self) -> tf.Tensor:
        return tf.cast(sum(tf.size(part) for part in self), tf.float32)


class TuckerVector(TangentVector):
    """A tangent vector as its parts.

    Attributes:
        K: tensor, shape `(n, p)`, orthogonal to U.
        S: tensor C, shape `(K, p, q)`.
        L: tensor, shape `(m, q)`, orthogonal to V.
    """

    __slots__ = ()

    def squared_norm(self) -> tf.Tensor:
        return sum(2.0 * tf.nn.l2_loss(part) for part in self)


def product_of_rows(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """`a_(1) b_(1)^T`, the sum of all `a_k b_k^T`."""
    return tf.reduce_sum(tf.matmul(a, b, transpose_b=True), axis=0)


def product_of_columns(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """`a_(2) b_(2)^T`, the sum of all `a_k^T b_k`."""
    # A product at each place takes half the time of one for all where TensorFlow has no oneDNN.
    return tf.reduce_sum(tf.matmul(a, b, transpose_a=True), axis=0)


def whitening(gram: tf.Tensor) -> tf.Tensor:
    """`L^-1` of the Gram matrix `L L^T` of the rows of an unfolding, damped where they are faint.

    The error of an entry is relative to the norms of its two rows, so that the factor of the
    scaled matrix is as exact as the data where rows are almost orthogonal (Higham, "Accuracy and
    stability of numerical algorithms", section 10.1); a truncation leaves them so.
    """
    unit = np.finfo(gram.dtype.as_numpy_dtype).eps
    wide = tf.cast(gram, tf.float64)
    floor = max(_NOISE_UNITS * unit, _GRAM_UNIT) ** 2 * tf.linalg.trace(wide)
    floor = tf.where(tf.equal(floor, 0.0), tf.ones_like(floor), floor)  # of a core of zeros
    one = identity_like(wide)
    scale = tf.math.rsqrt(tf.linalg.diag_part(wide) + floor)
    error = _ERROR_UNITS * unit * tf.cast(tf.shape(wide)[0], wide.dtype)
    scaled = scale[:, None] * (wide + floor * one) * scale + error * one
    inverse = tf.linalg.triangular_solve(tf.linalg.cholesky(scaled), one)
    return tf.cast(inverse * scale, gram.dtype)


def orthonormal(u: tf.Tensor, s: tf.Tensor, v: tf.Tensor) -> TuckerPoint:
    """The same kernel with orthonormal bases, from bases that are almost so."""
    (u, left), (v, right) = map(_orthonormal, (u, v))
    core = tf.matmul(tf.matmul(left, s, transpose_a=True), right)
    return TuckerPoint(u, core, v)


def _orthonormal(basis):
    """`(B R^-T, R)` with `B^T B = R R^T`, R lower triangular."""
    factor = tf.linalg.cholesky(tf.cast(tf.matmul(basis, basis, transpose_a=True), tf.float64))
    # The inverse of the small factor, and a product: several times as fast as a tall solve.
    inverse = tf.linalg.triangular_solve(factor, identity_like(factor))
    inverse, factor = (tf.cast(one, basis.dtype) for one in (inverse, factor))
    return tf.matmul(basis, inverse, transpose_b=True), factor


def cut(
    core: tf.Tensor,
    choose: Callable[[tf.Tensor, int], tf.Tensor],
    kept: Sequence[tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Truncates a core in both modes, one after the other (ST-HOSVD).

    Both cuts are orthogonal projections, so that the squared error is exactly the sum of the two
    squared tails (Vannieuwenhoven, Vandebril, Meerbergen, SIAM J. Sci. Comput. 34, 2012).

    Args:
        core: tensor, shape `(K, a, b)`.
        choose: callable `(values, mode) -> size`: how many directions stay, from the descending
            singular values of the unfolding of mode 0 or 1.
        kept: two integer scalar tensors. Of equal directions those within the first so many rows
            or columns come first.

    Returns:
        `(P, P^T S Q, Q)`: P of shape `(a, p)`, the core of shape `(K, p, q)`, Q of shape `(b, q)`.
    """
    left, values = _singular_vectors(product_of_rows(core, core), kept[0])
    left = left[:, : choose(_possible(values, core, 2), 0)]
    core = tf.matmul(left, core, transpose_a=True)
    right, values = _singular_vectors(product_of_columns(core, core), kept[1])
    right = right[:, : choose(_possible(values, core, 1), 1)]
    return left, tf.matmul(core, right), right


def _singular_vectors(gram, kept):
    """Left singular vectors of an unfolding with this Gram matrix, and its singular values."""
    wide = tf.cast(gram, tf.float64)
    # On a CPU, eigh raises on NaN, before the step can be discarded.
    finite = tf.math.is_finite(tf.reduce_sum(wide))
    wide = tf.where(finite, wide, tf.zeros_like(wide))
    first = tf.cast(tf.range(tf.shape(wide)[0]) < tf.cast(kept, tf.int32), wide.dtype)
    share = _PREFERENCE * tf.linalg.trace(wide) + 1e-60
    energies, vectors = tf.linalg.eigh(wide + share * tf.linalg.diag(first))
    values = tf.sqrt(tf.maximum(energies[::-1], 0.0))
    values = tf.where(finite, values, tf.cast(float("nan"), values.dtype))
    vectors = tf.cast(vectors[:, ::-1], gram.dtype)
    return fix_signs(vectors, vectors)[0], tf.cast(values, gram.dtype)


def _possible(values, core, axis):
    """The values that an unfolding with so many columns can have."""
    columns = tf.shape(core)[0] * tf.shape(core)[axis]
    return values[: tf.minimum(tf.size(values), columns)]
