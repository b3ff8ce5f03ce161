"""How a layer type multiplies with its matrix, and the adjoints that a tangent gradient takes."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_lowrank import row_slices
from keras_lowrank.linalg import extent, matmul_last, rows


class Form(NamedTuple):
    """The maps of a layer type, `y = expand(project(x, A), B)` for the matrix `W = A B^T`.

    Each is linear in both of its arguments.

    Attributes:
        project: callable `(inputs, A) -> coordinates`, shape `(..., k)`, for A of shape `(n, k)`.
        expand: callable `(coordinates, B) -> outputs`, for B of shape `(m, k)`; None for the
            product `z B^T`.
        whole: callable `(inputs, W) -> outputs`; None for `expand(project(x, W), I)`, which is
            `project` alone where `expand` is a product.
    """

    project: Callable
    expand: Callable | None = None
    whole: Callable | None = None

    def apply_whole(self, inputs, matrix):
        """`whole(x, W)`."""
        if self.whole is not None:
            return self.whole(inputs, matrix)
        outputs = self.project(inputs, matrix)
        if self.expand is None:
            return outputs
        return self.expand(outputs, tf.eye(extent(matrix, 1), dtype=matrix.dtype))

    def expanded(self, coordinates, basis):
        """`expand(z, B)`."""
        if self.expand is None:
            return matmul_last(coordinates, basis, transpose=True)
        return self.expand(coordinates, basis)

    def pulled_back(self, d, basis, coordinates):
        """The adjoint of `expand` in its coordinates, `d B` of a product.

        Args:
            d: tensor, of the shape of the outputs.
            basis: tensor B, shape `(m, k)`.
            coordinates: tensor, shape `(..., k)`, for its shape.
        """
        if self.expand is None:
            return matmul_last(d, basis)
        with tf.GradientTape() as tape:
            tape.watch(coordinates)
            outputs = self.expand(coordinates, basis)  # that nobody reads: a graph leaves it out
        return tape.gradient(outputs, coordinates, d)

    def of_basis(self, d, coordinates, basis):
        """The adjoint of `expand` in its basis, `d^T z` of a product: shape `(m, k)`."""
        if self.expand is None:
            if d.shape.rank == 2:
                return tf.matmul(rows(d), rows(coordinates), transpose_a=True)
            # Where d is long, to read it transposed takes up to half as much again.
            return tf.transpose(tf.matmul(rows(coordinates), rows(d), transpose_a=True))
        with tf.GradientTape() as tape:
            tape.watch(basis)
            outputs = self.expand(coordinates, basis)
        return row_slices.dense(tape.gradient(outputs, basis, d), extent(basis, 0))


# Plain products, for an application of the matrix that is no layer's own.
PLAIN = Form(matmul_last)
