"""Makes bases orthonormal that are almost so."""

import functools

import numpy as np
import tensorflow as tf

from keras_lowrank.manifold.decompositions import identity_like, signed_svd
from keras_lowrank.outlined import apart

# The tolerance for the spectral norm of B^T B - I, in units of rounding: 7.6e-6 in float32.
_DEFECT_UNITS = 64.0


def orthonormalized(
    left: tf.Tensor, core: tf.Tensor, right: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the same matrix `B C D^T` with orthonormal bases.

    Rounding errors add up in bases from step to step, and faint directions add more. If the
    spectral norm of `B^T B - I` or `D^T D - I` exceeds a tolerance (7.6e-6 in float32), both bases
    are multiplied with the inverse roots of their Gram matrices. The roots go into the core, and
    its singular value decomposition makes it diagonal again. Otherwise nothing changes.

    A basis that is too far off for this gets a Householder QR first. That alone is not enough: its
    rounding errors grow with n.

    Args:
        left: almost orthonormal tensor B, shape `(n, r)`.
        core: tensor C, shape `(r, r)`.
        right: almost orthonormal tensor D, shape `(m, r)`.

    Returns:
        Tuple of tensors `(B, C, D)` of the same shapes.

    Example:

    >>> left, core, right = manifold.orthonormalized(1.1 * tf.eye(3, 1), tf.eye(1), tf.eye(3, 1))
    >>> print(f"{float(left[0, 0]):.2f} {float(core[0, 0]):.2f}")
    1.00 1.10
    """
    tolerance = _DEFECT_UNITS * np.finfo(core.dtype.as_numpy_dtype).eps
    one = identity_like(core)
    excesses = [tf.matmul(basis, basis, transpose_a=True) - one for basis in (left, right)]
    # Scaled by the tolerance first: its eighth power would underflow in float32.
    defect = tf.maximum(*(spectral_norm(excess / tolerance) for excess in excesses))

    def correct():
        parts = _correction(left.dtype)(left, core, right, *excesses, tolerance * defect)
        for part, old in zip(parts, (left, core, right)):
            part.set_shape(old.shape)
        return tuple(parts)

    return tf.cond(defect > 1.0, correct, lambda: (left, core, right))


@functools.cache
def _correction(dtype):
    """The rare branch of `orthonormalized`, traced once for all layers."""

    def correct(left, core, right, left_excess, right_excess, defect):
        def householder():
            (left_q, left_r), (right_q, right_r) = tf.linalg.qr(left), tf.linalg.qr(right)
            one = identity_like(core)
            rest = [tf.matmul(q, q, transpose_a=True) - one for q in (left_q, right_q)]
            middle = tf.matmul(tf.matmul(left_r, core), right_r, transpose_b=True)
            return left_q, middle, right_q, *rest

        # The series of `roots` leaves a third of the cube of the defect.
        near = defect < np.finfo(dtype.as_numpy_dtype).eps ** (1 / 3)
        b, middle, d, *rest = tf.cond(
            near, lambda: (left, core, right, left_excess, right_excess), householder
        )
        (left_inverse, left_root), (right_inverse, right_root) = map(roots, rest)
        p, values, q = signed_svd(tf.matmul(tf.matmul(left_root, middle), right_root))
        return (
            tf.matmul(b, tf.matmul(left_inverse, p)),
            tf.linalg.diag(values),
            tf.matmul(d, tf.matmul(right_inverse, q)),
        )

    block, number = tf.TensorSpec([None, None], dtype), tf.TensorSpec([], dtype)
    return apart(correct, [block] * 5 + [number])


def roots(e: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`(I + E)^(-1/2)` and `(I + E)^(1/2)` for a small symmetric E, from their series."""
    one, square = identity_like(e), tf.matmul(e, e)
    inverse, root = one - 0.5 * e + 0.375 * square, one + 0.5 * e - 0.125 * square
    if e.dtype == tf.float64:  # a Newton step doubles the digits
        inverse = 0.5 * tf.matmul(
            inverse, 3.0 * one - tf.matmul(tf.matmul(inverse, inverse), one + e)
        )
        root = tf.matmul(one + e, inverse)
    return inverse, root


def spectral_norm(matrix: tf.Tensor) -> tf.Tensor:
    """`||A^4||_F^(1/4)`: between 1 and `r^(1/8)` times the spectral norm of a symmetric A."""
    square = tf.matmul(matrix, matrix)
    return tf.norm(tf.matmul(square, square)) ** 0.25
