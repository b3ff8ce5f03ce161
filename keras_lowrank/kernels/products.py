"""Products of arrays of any number of axes with a matrix."""

from collections.abc import Sequence

import tensorflow as tf


def rows(inputs: tf.Tensor) -> tf.Tensor:
    """Folds all axes but the last into one: shape `(..., k)` to `(batch, k)`."""
    if inputs.shape.rank == 2:
        return inputs
    return tf.reshape(inputs, [-1, extent(inputs, -1)])


def matmul_last(
    inputs: tf.Tensor | tf.SparseTensor, matrix: tf.Tensor, transpose: bool = False
) -> tf.Tensor:
    """Returns `inputs @ matrix`, or `inputs @ matrix^T`, over the last axis of any array.

    Leading axes are folded into one: one matrix product is several times faster than a batched one.

    Args:
        inputs: tensor, shape `(..., k)`, or `tf.SparseTensor`, shape `(batch, k)`.
        matrix: tensor, shape `(k, l)`, or `(l, k)` with `transpose`.
        transpose: bool. Cheaper than `tf.transpose`, which copies.

    Returns:
        Tensor of shape `(..., l)`.

    Example:

    >>> kernels.matmul_last(tf.ones((2, 5, 8)), tf.ones((8, 3))).shape
    TensorShape([2, 5, 3])
    """
    if isinstance(inputs, tf.SparseTensor):
        return tf.sparse.sparse_dense_matmul(inputs, matrix, adjoint_b=transpose)
    outputs = tf.matmul(rows(inputs), matrix, transpose_b=transpose)
    if inputs.shape.rank == 2:
        return outputs
    return _with_leading(outputs, inputs, -1, [extent(matrix, 0 if transpose else 1)])


def reshape_last(inputs: tf.Tensor, count: int, extents: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Replaces the last `count` axes of any array by axes of the given extents."""
    if count == len(extents) == 1:
        return inputs
    return _with_leading(inputs, inputs, inputs.shape.rank - count, extents)


def _with_leading(outputs, inputs, end, extents):
    """Reshapes `outputs` to the axes of `inputs` up to `end`, then the given extents."""
    known = inputs.shape[:end].as_list()
    if known.count(None) <= 1:
        # One unknown extent can be inferred: with no arithmetic on shapes in the graph, every
        # tensor of a LiteRT file is static.
        leading = [-1 if extent is None else extent for extent in known]
    else:
        leading = tf.unstack(tf.shape(inputs)[:end], num=len(known))
    outputs = tf.reshape(outputs, [*leading, *extents])
    outputs.set_shape([*known, *outputs.shape[len(known) :]])
    return outputs


def extent(tensor: tf.Tensor, axis: int) -> int | tf.Tensor:
    """The length of an axis: an int if it is known when traced, else a tensor."""
    static = tensor.shape[axis]
    return tf.shape(tensor)[axis] if static is None else static
