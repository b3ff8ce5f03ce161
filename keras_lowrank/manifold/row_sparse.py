r"""Row-sparse tall blocks: the K-part of a layer that looks up rows.

A batch only touches the rows of a table that its indices name, and the K-part `G V` of the gradient
is zero in all others. `tf.IndexedSlices` hold the nonzero rows and their indices. All functions
here take slices, with each index once (`collected`), or the whole block as a tensor. Any other
operation of TensorFlow turns slices into a whole block.
"""

from typing import TypeAlias

import tensorflow as tf

Block: TypeAlias = tf.Tensor | tf.IndexedSlices


def is_slices(block: Block) -> bool:
    """Whether a block is given by its rows."""
    return isinstance(block, tf.IndexedSlices)


def values(block: Block) -> tf.Tensor:
    """All entries of a block that may be nonzero."""
    return block.values if is_slices(block) else block


def collected(slices: Block, count: int) -> Block:
    """Sums the rows of each index, so that every index comes once; leaves a whole block.

    Args:
        slices: tensor, or `tf.IndexedSlices` of rows of shape `(r,)` with any indices.
        count: int, n, the number of rows of the whole block.
    """
    if not is_slices(slices):
        return slices
    indices, position = tf.unique(slices.indices)
    number = tf.shape(indices)[0]
    rows = tf.math.unsorted_segment_sum(slices.values, position, number)
    return tf.IndexedSlices(rows, indices, tf.stack([count, tf.shape(rows)[1]]))


def with_values(block: Block, new: tf.Tensor) -> Block:
    """A block with new values in the same places."""
    return tf.IndexedSlices(new, block.indices, block.dense_shape) if is_slices(block) else new


def dense(block: Block, count: int | None = None) -> tf.Tensor:
    """The whole block, shape `(n, r)`; `count` is n for slices without a dense shape."""
    if not is_slices(block):
        return block
    if count is None:
        count = block.dense_shape[0]
    return tf.math.unsorted_segment_sum(block.values, block.indices, count)


def scaled(block: Block, factor: tf.Tensor | float) -> Block:
    """`c K`, for a number or a scalar tensor of the type of K."""
    return with_values(block, factor * values(block))


def plus(one: Block, other: Block) -> tf.Tensor:
    """`A + B`, a whole block."""
    if is_slices(one):
        one, other = other, one
    if not is_slices(other):
        return one + other
    # Unlike `tf.tensor_scatter_nd_add`, this adds in place if `one` has no other reader.
    return tf.raw_ops.ScatterNdNonAliasingAdd(
        input=dense(one), indices=other.indices[:, None], updates=other.values
    )


def inner(one: Block, other: Block) -> tf.Tensor:
    """`A^T B`, shape `(r, s)`."""
    if one is other:
        one = other = values(one)
    elif is_slices(one):
        one, other = one.values, tf.gather(dense(other), one.indices)
    elif is_slices(other):
        one, other = tf.gather(one, other.indices), other.values
    return tf.matmul(one, other, transpose_a=True)


def combined(basis: tf.Tensor, a: tf.Tensor, block: Block, b: tf.Tensor) -> tf.Tensor:
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


def mean_squares(block: Block) -> tf.Tensor:
    """The mean square of every row, shape `(n,)`."""
    block_values = values(block)
    rank = tf.shape(block_values)[1]
    share = tf.fill([rank], 1.0 / tf.cast(rank, block_values.dtype))
    # A product takes half the time of a mean over the short axis.
    squares = tf.linalg.matvec(tf.square(block_values), share)
    if not is_slices(block):
        return squares
    return tf.math.unsorted_segment_sum(squares, block.indices, block.dense_shape[0])
