"""Decompositions of small matrices, in one gauge."""

import tensorflow as tf


def signed_svd(matrix):
    """Singular value decomposition `P diag(s) Q^T` with the signs fixed by a rule.

    The entry of largest magnitude in each column of `P` is positive (the first of them, where
    several tie), so equal matrices give equal factors.

    Args:
        matrix: float tensor, shape `(a, b)`.

    Returns:
        `(P, s, Q)` of shapes `(a, k)`, `(k,)` and `(b, k)`, `k = min(a, b)`, `s` descending.
        Where `matrix` is not finite, s is NaN.
    """
    finite = tf.math.is_finite(tf.reduce_sum(matrix))
    values, left, right = tf.linalg.svd(tf.where(finite, matrix, tf.zeros_like(matrix)))
    values = tf.where(finite, values, tf.cast(float("nan"), values.dtype))
    left, right = fix_signs(left, right)
    return left, values, right


def fix_signs(left, right):
    """Turns pairs of singular vectors so that the largest entry of each left one is positive."""
    largest = tf.argmax(tf.abs(left), axis=0)
    chosen = tf.one_hot(largest, tf.shape(left)[0], axis=0, dtype=left.dtype)
    pivots = tf.reduce_sum(left * chosen, axis=0)
    signs = tf.where(pivots < 0, -tf.ones_like(pivots), tf.ones_like(pivots))
    return left * signs, right * signs


def signed_qr(matrix):
    """Householder QR of a small matrix with the diagonal of `R` made non-negative.

    Unlike a Gram-based basis it has all `b` columns whatever the rank of `matrix` is.

    Args:
        matrix: float tensor, shape `(a, b)`, `a >= b`.

    Returns:
        Orthonormal tensor `Q`, shape `(a, b)`, with `range(matrix)` inside `range(Q)`; NaN where
        `matrix` is not finite.
    """
    orthonormal, triangular = tf.linalg.qr(matrix)
    diagonal = tf.linalg.diag_part(triangular)
    return orthonormal * tf.where(diagonal < 0, -tf.ones_like(diagonal), tf.ones_like(diagonal))


def identity_like(matrix):
    """The identity of the size and type of a square matrix."""
    return tf.eye(tf.shape(matrix)[0], dtype=matrix.dtype)
