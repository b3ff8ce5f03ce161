"""A matrix of rank r as three tensors: a point of the manifold."""

from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.manifold.decompositions import signed_svd


class Point(NamedTuple):
    """The matrix `W = U S V^T` as three tensors.

    Attributes:
        U: tensor, shape `(n, r)`, orthonormal columns.
        S: tensor, shape `(r, r)`, the core.
        V: tensor, shape `(m, r)`, orthonormal columns.

    Example:

    >>> point = Point(U=tf.eye(4, 2), S=tf.linalg.diag([3.0, 1.0]), V=tf.eye(3, 2))
    >>> tf.matmul(point.U @ point.S, point.V, transpose_b=True).shape
    TensorShape([4, 3])
    """

    U: tf.Tensor
    S: tf.Tensor
    V: tf.Tensor


# Replaces a singular value of zero: too small to change any product, but the gradients of U and V
# still show where the matrix can grow.
_LEAST = 1e-18


def diagonal(values: tf.Tensor) -> tf.Tensor:
    """A core with these singular values, shape `(r, r)`, none of them exactly zero."""
    return tf.linalg.diag(tf.maximum(values, tf.cast(_LEAST, values.dtype)))


def diagonalized(point: Point) -> Point:
    """The same W with a diagonal core, descending; U and V must be orthonormal.

    Example:

    >>> point = Point(tf.eye(3, 2), tf.constant([[0.0, 1.0], [2.0, 0.0]]), tf.eye(3, 2))
    >>> print(manifold.diagonalized(point).S.numpy().round(2))
    [[2. 0.]
     [0. 1.]]
    """
    u, s, v = point
    p, values, q = signed_svd(s)
    return Point(tf.matmul(u, p), diagonal(values), tf.matmul(v, q))
