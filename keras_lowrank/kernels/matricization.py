"""How a kernel of any number of axes is a matrix."""

import math
from typing import NamedTuple

import keras


class Matricization(NamedTuple):
    """A kernel read as an n x m matrix: its axes in two groups.

    Attributes:
        kernel_shape: tuple of int.
        rows: tuple of int, the axes of the kernel that the rows of the matrix run through, the
            slowest first.
        columns: tuple of int, all other axes, which the columns run through.
    """

    kernel_shape: tuple
    rows: tuple
    columns: tuple

    @classmethod
    def of_last_axis(cls, kernel_shape):
        """The columns are the last axis, as in a dense layer or a convolution."""
        last = len(kernel_shape) - 1
        return cls(tuple(kernel_shape), tuple(range(last)), (last,))

    @property
    def shape(self):
        """`(n, m)`."""
        return tuple(math.prod(self.kernel_shape[a] for a in axes) for axes in self[1:])

    def matrix(self, kernel):
        """The matrix of a kernel."""
        return keras.ops.reshape(_transposed(kernel, self.rows + self.columns), self.shape)

    def kernel(self, matrix):
        """The kernel of a matrix."""
        order = self.rows + self.columns
        kernel = keras.ops.reshape(matrix, [self.kernel_shape[axis] for axis in order])
        return _transposed(kernel, [order.index(axis) for axis in range(len(order))])


def _transposed(tensor, order):
    # Most kernels are in order, and are not to be copied for nothing.
    return tensor if list(order) == sorted(order) else keras.ops.transpose(tensor, order)
