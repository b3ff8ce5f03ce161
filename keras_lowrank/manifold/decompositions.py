"""Decompositions of small matrices, with a fixed choice of signs."""

import tensorflow as tf


def signed_svd(matrix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Singular value decomposition `P diag(s) Q^T` with fixed signs: equal input, equal output.

    The entry of largest magnitude in each column of `P` is positive, the first of several.

    Args:
        matrix: float tensor, shape `(a, b)`.

    Returns:
        `(P, s, Q)` of shapes `(a, k)`, `(k,)` and `(b, k)`, `k = min(a, b)`, `s` descending. If
        `matrix` is not finite, s is NaN.

    Example:

    >>> left, values, right = manifold.signed_svd(tf.linalg.diag([1.0, -3.0]))
    >>> print(values.numpy().round(2), left.numpy().round(2), sep="\\n")
    [3. 1.]
    [[0. 1.]
     [1. 0.]]
    """
    finite = tf.math.is_finite(tf.reduce_sum(matrix))
    values, left, right = tf.linalg.svd(tf.where(finite, matrix, tf.zeros_like(matrix)))
    values = tf.where(finite, values, tf.cast(float("nan"), values.dtype))
    left, right = fix_signs(left, right)
    return left, values, right


def fix_signs(left: tf.Tensor, right: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes the largest entry of each left singular vector positive; pairs keep their product."""
    largest = tf.argmax(tf.abs(left), axis=0)
    chosen = tf.one_hot(largest, tf.shape(left)[0], axis=0, dtype=left.dtype)
    pivots = tf.reduce_sum(left * chosen, axis=0)
    signs = tf.where(pivots < 0, -tf.ones_like(pivots), tf.ones_like(pivots))
    return left * signs, right * signs


def signed_qr(matrix: tf.Tensor) -> tf.Tensor:
    """Q of the Householder QR of a small matrix, with a non-negative diagonal of `R`.

    Unlike a Gram-based basis it has `b` columns at every rank of `matrix`.

    Args:
        matrix: float tensor, shape `(a, b)`, `a >= b`.

    Returns:
        Orthonormal tensor `Q`, shape `(a, b)`, with `range(matrix)` inside `range(Q)`; NaN if
        `matrix` is not finite.

    Example:

    >>> print(manifold.signed_qr(tf.constant([[3.0], [4.0]])).numpy().round(2))
    [[0.6]
     [0.8]]
    """
    orthonormal, triangular = tf.linalg.qr(matrix)
    diagonal = tf.linalg.diag_part(triangular)
    return orthonormal * tf.where(diagonal < 0, -tf.ones_like(diagonal), tf.ones_like(diagonal))


def identity_like(matrix: tf.Tensor) -> tf.Tensor:
    """The identity of the size and type of a square matrix."""
    return tf.eye(tf.shape(matrix)[0], dtype=matrix.dtype)
