"""Orthonormal bases of a matrix whose bases are almost orthonormal."""

import functools

import numpy as np
import tensorflow as tf

from keras_lowrank.manifold.decompositions import identity_like, signed_svd
from keras_lowrank.outlined import apart

# The spectral norm of B^T B - I that a basis is left with, in units of rounding: 7.6e-6 in float32.
_DEFECT_UNITS = 64.0


def orthonormalized(left, core, right):
    """Returns the same matrix `B C D^T` with orthonormal bases.

    Bases that pass from step to step collect roundings, and faint directions bring more. Both are
    measured here, by one Gram matrix each. Where the spectral norm of `B^T B - I` or `D^T D - I`
    may exceed 7.6e-6 (float32), both are multiplied with the inverse roots of their Gram matrices,
    and what they leave goes into the core, whose singular value decomposition restores the gauge;
    else nothing is done.

    A basis that is too far off for that comes out of a Householder QR first, which bears columns of
    any kind. It is not enough by itself: its own roundings grow with n, to 6e-5 at 200,000 rows.

    Args:
        left: almost orthonormal tensor B, shape `(n, r)`.
        core: tensor C, shape `(r, r)`.
        right: almost orthonormal tensor D, shape `(m, r)`.

    Returns:
        Tuple of tensors `(B, C, D)` of the same shapes.
    """
    borne = _DEFECT_UNITS * np.finfo(core.dtype.as_numpy_dtype).eps
    one = identity_like(core)
    excesses = [tf.matmul(basis, basis, transpose_a=True) - one for basis in (left, right)]
    # In units of what is borne: the eighth power of an excess is no number that float32 holds.
    defect = tf.maximum(*(spectral_norm(excess / borne) for excess in excesses))

    def mended():
        parts = _mended(left.dtype)(left, core, right, *excesses, borne * defect)
        for part, old in zip(parts, (left, core, right)):
            part.set_shape(old.shape)
        return tuple(parts)

    return tf.cond(defect > 1.0, mended, lambda: (left, core, right))


@functools.cache
def _mended(dtype):
    """What `orthonormalized` does in rare steps: one function, which no layer has to trace anew."""

    def mended(left, core, right, left_excess, right_excess, defect):
        def householder():
            (left_q, left_r), (right_q, right_r) = tf.linalg.qr(left), tf.linalg.qr(right)
            one = identity_like(core)
            rest = [tf.matmul(q, q, transpose_a=True) - one for q in (left_q, right_q)]
            middle = tf.matmul(tf.matmul(left_r, core), right_r, transpose_b=True)
            return left_q, middle, right_q, *rest

        # The series leave a third of the cube.
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
    return apart(mended, [block] * 5 + [number])


def roots(e):
    """`(I + E)^(-1/2)` and `(I + E)^(1/2)` for a small symmetric E, by their series."""
    one, square = identity_like(e), tf.matmul(e, e)
    inverse, root = one - 0.5 * e + 0.375 * square, one + 0.5 * e - 0.125 * square
    if e.dtype == tf.float64:  # a step of Newton doubles the digits
        inverse = 0.5 * tf.matmul(
            inverse, 3.0 * one - tf.matmul(tf.matmul(inverse, inverse), one + e)
        )
        root = tf.matmul(one + e, inverse)
    return inverse, root


def spectral_norm(matrix):
    """`||A^4||_F^(1/4)`: at least the spectral norm of a symmetric r x r A, within `r^(1/8)`."""
    square = tf.matmul(matrix, matrix)
    return tf.norm(tf.matmul(square, square)) ** 0.25
