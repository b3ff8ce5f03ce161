"""How a layer type multiplies with its matrix."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_lowrank.kernels.products import extent, matmul_last


class KernelMaps(NamedTuple):
    """The maps of a layer type, `y = expand(project(x, A), B)` for the matrix `W = A B^T`.

    Each map is linear in both of its arguments.

    Attributes:
        project: callable `(inputs, A) -> coordinates`, shape `(..., k)`, for A of shape `(n, k)`.
        expand: callable `(coordinates, B) -> outputs`, for B of shape `(m, k)`; None for the
            product `z B^T`.
        whole: callable `(inputs, W) -> outputs`; None for `expand(project(x, W), I)`, which is
            `project` alone if `expand` is a product.
        core: callable `(coordinates, S) -> coordinates`, for a core that is no matrix; None for the
            product `z S`.
    """

    project: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    expand: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None
    whole: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None
    core: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None

    def apply_whole(self, inputs: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        """`whole(x, W)`."""
        if self.whole is not None:
            return self.whole(inputs, matrix)
        outputs = self.project(inputs, matrix)
        if self.expand is None:
            return outputs
        return self.expand(outputs, tf.eye(extent(matrix, 1), dtype=matrix.dtype))

    def transformed(self, coordinates: tf.Tensor, core: tf.Tensor) -> tf.Tensor:
        """`core(z, S)`."""
        return (self.core or matmul_last)(coordinates, core)

    def expanded(self, coordinates: tf.Tensor, basis: tf.Tensor) -> tf.Tensor:
        """`expand(z, B)`."""
        if self.expand is None and coordinates.shape.rank == 2:
            return matmul_last(coordinates, basis, transpose=True)
        if self.expand is None:  # B is transposed first: its gradient then transposes no long block
            return matmul_last(coordinates, tf.transpose(basis))
        return self.expand(coordinates, basis)


# Plain matrix products.
PLAIN = KernelMaps(matmul_last)
