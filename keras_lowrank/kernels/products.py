"""Products of arrays of any number of axes with a matrix."""

import tensorflow as tf


def rows(inputs):
    """Folds all axes but the last into one: shape `(..., k)` to `(batch, k)`."""
    if inputs.shape.rank == 2:
        return inputs
    return tf.reshape(inputs, [-1, extent(inputs, -1)])


def matmul_last(inputs, matrix, transpose=False):
    """Returns `inputs @ matrix`, or `inputs @ matrix^T`, over the last axis of any array.

    Leading axes are folded into one, so that one plain matrix product does the work: a batched
    product of a rank-4 activation with a matrix is several times slower.

    Args:
        inputs: tensor, shape `(..., k)`, or `tf.SparseTensor`, shape `(batch, k)`.
        matrix: tensor, shape `(k, l)`, or `(l, k)` with `transpose`.
        transpose: bool. Cheaper than `tf.transpose`, which copies.

    Returns:
        Tensor of shape `(..., l)`.
    """
    if isinstance(inputs, tf.SparseTensor):
        return tf.sparse.sparse_dense_matmul(inputs, matrix, adjoint_b=transpose)
    outputs = tf.matmul(rows(inputs), matrix, transpose_b=transpose)
    if inputs.shape.rank == 2:
        return outputs
    return _with_leading(outputs, inputs, -1, [extent(matrix, 0 if transpose else 1)])


def reshape_last(inputs, count, extents):
    """Puts axes of the given extents in the place of the last `count` axes of any array."""
    if count == len(extents) == 1:
        return inputs
    return _with_leading(inputs, inputs, inputs.shape.rank - count, extents)


def _with_leading(outputs, inputs, end, extents):
    """Reshapes `outputs` to the axes of `inputs` up to `end`, and axes of the given extents."""
    known = inputs.shape[:end].as_list()
    if known.count(None) <= 1:
        # One unknown extent can be inferred. The graph then needs no arithmetic on shapes, which
        # keeps every tensor of a LiteRT file static.
        leading = [-1 if extent is None else extent for extent in known]
    else:
        leading = tf.unstack(tf.shape(inputs)[:end], num=len(known))
    outputs = tf.reshape(outputs, [*leading, *extents])
    outputs.set_shape([*known, *outputs.shape[len(known) :]])
    return outputs


def extent(tensor, axis):
    """The length of an axis: an int where it is known when traced, else a tensor."""
    static = tensor.shape[axis]
    return tf.shape(tensor)[axis] if static is None else static
