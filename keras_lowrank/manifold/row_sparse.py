r"""Tall blocks that are zero in all but some rows: the K-part of a layer that looks up rows.

A batch touches as many rows of a table as it has indices, however long the table is, and the K-part
`G V` of its gradient is zero in all others. So it is kept as `tf.IndexedSlices`, the rows and where
they stand. The functions here are all that a step does with a K-part; each takes slices, or the
whole block as a tensor. Slices have each index once (`collected`). Elsewhere, TensorFlow makes a
whole block of them wherever an operation is given slices.
"""

import tensorflow as tf


def is_slices(block):
    """Whether a block is given by its rows."""
    return isinstance(block, tf.IndexedSlices)


def values(block):
    """All numbers of a block that can be other than zero; None for None."""
    return block.values if is_slices(block) else block


def collected(slices, count):
    """Slices with each index once, and the sum of its rows; a whole block as it is.

    Args:
        slices: tensor, or `tf.IndexedSlices` of rows of shape `(r,)`, indices in any order and
            number.
        count: int, n, the number of rows of the whole block.
    """
    if not is_slices(slices):
        return slices
    indices, position = tf.unique(slices.indices)
    number = tf.shape(indices)[0]
    rows = tf.math.unsorted_segment_sum(slices.values, position, number)
    return tf.IndexedSlices(rows, indices, tf.stack([count, tf.shape(rows)[1]]))


def with_values(block, new):
    """A block of other numbers in the same places."""
    return tf.IndexedSlices(new, block.indices, block.dense_shape) if is_slices(block) else new


def dense(block, count=None):
    """The whole block, a tensor of shape `(n, r)`; `count`, n, where slices do not know it."""
    if not is_slices(block):
        return block
    if count is None:
        count = block.dense_shape[0]
    return tf.math.unsorted_segment_sum(block.values, block.indices, count)


def scaled(block, factor):
    """`c K`, for a number or a scalar tensor of the type of K."""
    return with_values(block, factor * values(block))


def plus(one, other):
    """`A + B`, a whole block."""
    if is_slices(one):
        one, other = other, one
    if not is_slices(other):
        return one + other
    # Other than `tf.tensor_scatter_nd_add`, this adds in place where nobody else reads `one`.
    return tf.raw_ops.ScatterNdNonAliasingAdd(
        input=dense(one), indices=other.indices[:, None], updates=other.values
    )


def inner(one, other):
    """`A^T B`, shape `(r, s)`."""
    if one is other:
        one = other = values(one)
    elif is_slices(one):
        one, other = one.values, tf.gather(dense(other), one.indices)
    elif is_slices(other):
        one, other = tf.gather(one, other.indices), other.values
    return tf.matmul(one, other, transpose_a=True)


def combined(basis, a, block, b):
    """`B a + K b`, shape `(n, s)`.

    Args:
        basis: tensor, shape `(n, r)`.
        a: tensor, shape `(r, s)`.
        block: tensor or slices K, shape `(n, r)`.
        b: tensor, shape `(r, s)`.
    """
    inside = tf.matmul(basis, a)
    if not is_slices(block):
        return inside + tf.matmul(block, b)
    rows = tf.matmul(block.values, b)
    return plus(inside, tf.IndexedSlices(rows, block.indices))


def mean_squares(block):
    """The mean square of every row, shape `(n,)`."""
    block_values = values(block)
    rank = tf.shape(block_values)[1]
    share = tf.fill([rank], 1.0 / tf.cast(rank, block_values.dtype))
    # A product takes half the time of a mean along the short axis.
    squares = tf.linalg.matvec(tf.square(block_values), share)
    if not is_slices(block):
        return squares
    return tf.math.unsorted_segment_sum(squares, block.indices, block.dense_shape[0])
