"""Linear algebra on tall blocks: pure tensor functions, no layer and no variable.

Tall blocks (n x r, n large) are touched by matrix products only; whatever is factorised is
small (r x r). On two CPU cores a Householder QR of a 5120 x 32 block takes several times as long
as the products and the small eigenvalue problem used here.
"""

import numpy as np
import tensorflow as tf

# A direction smaller than this many units of rounding, relative to the whole block, is noise.
_NOISE_UNITS = 64.0

# The finest unit that a float64 Gram matrix resolves, because it squares the condition number:
# 64 * 2^-29 is an order of magnitude above sqrt(eps).
_GRAM_UNIT = 2.0**-29


def rows(inputs):
    """Folds all axes but the last into one: shape `(..., k)` to `(batch, k)`."""
    if inputs.shape.rank == 2:
        return inputs
    return tf.reshape(inputs, [-1, _extent(inputs, -1)])


def matmul_last(inputs, matrix):
    """Returns `inputs @ matrix` over the last axis of an array of any rank.

    Leading axes are folded into one, so that one plain matrix product does the work: a batched
    product of a rank-4 activation with a matrix is several times slower.

    Args:
        inputs: tensor, shape `(..., k)`.
        matrix: tensor, shape `(k, l)`.

    Returns:
        Tensor of shape `(..., l)`.
    """
    if inputs.shape.rank == 2:
        return tf.matmul(inputs, matrix)
    outputs = tf.matmul(rows(inputs), matrix)
    leading = inputs.shape[:-1].as_list()
    if leading.count(None) <= 1:
        # One unknown extent can be inferred. The graph then needs no arithmetic on shapes, which
        # keeps every tensor of a LiteRT file static.
        extents = [-1 if extent is None else extent for extent in leading]
    else:
        extents = tf.unstack(tf.shape(inputs)[:-1], num=len(leading))
    outputs = tf.reshape(outputs, [*extents, _extent(matrix, 1)])
    outputs.set_shape([*leading, matrix.shape[1]])
    return outputs


def orthonormal_complement(block, basis):
    r"""Returns an orthonormal basis of what `block` adds outside the span of `basis`.

    With `R = (I - B B^T) A`, the result `Q` satisfies `Q^T Q = I`, `B^T Q = 0` and
    `range([B, Q]) = range([B, A])`, up to directions of `R` below rounding relative to
    `||A||_F`, which are noise and are left out. There are at most `min(r, n - b)` columns: none
    when `basis` already spans the space or when `block` is zero.

    Two rounds of products with one small factorisation each. The first takes the singular
    directions of `R` from its Gram matrix, formed in float64: the squared condition number then
    costs digits that float32 data do not have. It leaves an error of at most about 1e-2 in the
    faintest direction that is kept, and the second round (project again, Cholesky) takes it to
    rounding: "twice is enough" (Giraud, Langou, Rozloznik, van den Eshof, Numer. Math. 101, 2005).

    Args:
        block: float tensor `A`, shape `(n, r)`. Must be finite.
        basis: float tensor `B` with orthonormal columns, shape `(n, b)`.

    Returns:
        Tensor of shape `(n, k)`, `0 <= k <= min(r, n - b)`.

    Example:

    >>> basis = tf.constant([[1.0], [0.0], [0.0]])
    >>> block = tf.constant([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    >>> orthonormal_complement(block, basis).shape.as_list()
    [3, 1]
    """
    residual = tf.cast(_project_out(_project_out(block, basis), basis), tf.float64)
    energies, directions = tf.linalg.eigh(tf.matmul(residual, residual, transpose_a=True))
    sizes = tf.sqrt(tf.maximum(energies, 0.0))  # ascending
    unit = max(np.finfo(block.dtype.as_numpy_dtype).eps, _GRAM_UNIT)
    noise = _NOISE_UNITS * unit * tf.norm(tf.cast(block, tf.float64))
    room = tf.shape(basis)[0] - tf.shape(basis)[1]
    kept = tf.minimum(tf.math.count_nonzero(sizes > noise, dtype=tf.int32), room)
    first = tf.shape(sizes)[0] - kept
    # Faint directions are differences of large columns, so this product is in float64 as well.
    candidates = tf.matmul(residual, directions[:, first:] / sizes[first:])
    candidates = _project_out(tf.cast(candidates, block.dtype), basis)
    return matmul_inverse_root(candidates)


def matmul_inverse_root(block):
    """Makes the columns of an almost orthonormal `block` orthonormal, by one Cholesky QR.

    Accurate to rounding where `||A^T A - I||` is well below 1.

    Args:
        block: float tensor `A`, shape `(n, k)`.

    Returns:
        Tensor `A L^-T`, shape `(n, k)`, where `A^T A = L L^T`.
    """
    lower = tf.linalg.cholesky(tf.matmul(block, block, transpose_a=True))
    identity = tf.eye(tf.shape(block)[1], dtype=block.dtype)
    return tf.matmul(block, tf.linalg.triangular_solve(lower, identity), transpose_b=True)


def rotate(basis, complement, coordinates):
    """Returns `[B, Q] C`, with the drift of `B` from orthonormality taken out to first order.

    A basis that is multiplied by one small rotation after another loses orthonormality like a
    random walk of roundings. `B (I - E / 2)` with `E = B^T B - I` removes `E` up to `E^2`, for
    one small Gram matrix a step.

    Args:
        basis: tensor `B` with almost orthonormal columns, shape `(n, b)`.
        complement: tensor `Q`, orthonormal and orthogonal to `B`, shape `(n, q)`.
        coordinates: tensor `C`, shape `(b + q, r)`.

    Returns:
        Tensor of shape `(n, r)`.
    """
    size = tf.shape(basis)[1]
    own, added = coordinates[:size], coordinates[size:]
    gram = tf.matmul(basis, basis, transpose_a=True)
    own = 1.5 * own - 0.5 * tf.matmul(gram, own)
    return tf.matmul(basis, own) + tf.matmul(complement, added)


def signed_svd(matrix):
    """Singular value decomposition `P diag(s) Q^T` with the signs fixed by a rule.

    The entry of largest magnitude in each column of `P` is positive (the first of them, where
    several tie), so equal matrices give equal factors.

    Args:
        matrix: float tensor, shape `(a, b)`. Must be finite.

    Returns:
        `(P, s, Q)` of shapes `(a, k)`, `(k,)` and `(b, k)`, `k = min(a, b)`, `s` descending.
    """
    values, left, right = tf.linalg.svd(matrix)
    largest = tf.argmax(tf.abs(left), axis=0, output_type=tf.int32)
    pivots = tf.gather(tf.transpose(left), largest, batch_dims=1)
    signs = tf.where(pivots < 0, -tf.ones_like(pivots), tf.ones_like(pivots))
    return left * signs, values, right * signs


def signed_qr(matrix):
    """Householder QR of a small matrix with the diagonal of `R` made non-negative.

    Unlike a Gram-based basis it has all `b` columns whatever the rank of `matrix` is.

    Args:
        matrix: float tensor, shape `(a, b)`, `a >= b`. Must be finite.

    Returns:
        Orthonormal tensor `Q`, shape `(a, b)`, with `range(matrix)` inside `range(Q)`.
    """
    orthonormal, triangular = tf.linalg.qr(matrix)
    diagonal = tf.linalg.diag_part(triangular)
    return orthonormal * tf.where(diagonal < 0, -tf.ones_like(diagonal), tf.ones_like(diagonal))


def _project_out(block, basis):
    return block - tf.matmul(basis, tf.matmul(basis, block, transpose_a=True))


def _extent(tensor, axis):
    static = tensor.shape[axis]
    return tf.shape(tensor)[axis] if static is None else static
