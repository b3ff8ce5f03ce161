"""How a kernel of any number of axes is read as a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf


class Matricization(NamedTuple):
    """A kernel read as an n x m matrix: its axes in two groups.

    Attributes:
        kernel_shape: tuple of int.
        rows: tuple of int, the axes of the kernel that make the rows, the slowest first.
        columns: tuple of int, all other axes, which make the columns.

    Example:

    >>> kernels.Matricization.of_last_axis((3, 3, 16, 32)).shape
    (144, 32)
    """

    kernel_shape: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def of_last_axis(cls, kernel_shape: Sequence[int]) -> Matricization:
        """The columns are the last axis, as in a dense layer or a convolution."""
        last = len(kernel_shape) - 1
        return cls(tuple(kernel_shape), tuple(range(last)), (last,))

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        n, m = (math.prod(self.kernel_shape[a] for a in axes) for axes in self[1:])
        return n, m

    def matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """The matrix of a kernel."""
        return keras.ops.reshape(_transposed(kernel, self.rows + self.columns), self.shape)

    def kernel(self, matrix: tf.Tensor) -> tf.Tensor:
        """The kernel of a matrix."""
        order = self.rows + self.columns
        kernel = keras.ops.reshape(matrix, [self.kernel_shape[axis] for axis in order])
        return _transposed(kernel, [order.index(axis) for axis in range(len(order))])


def _transposed(tensor, order):
    # Most kernels are in order already, and need no copy.
    return tensor if list(order) == sorted(order) else keras.ops.transpose(tensor, order)
