"""Linear algebra on tall blocks: pure tensor functions, no layer and no variable.

Tall blocks (n x r, n large) are touched by matrix products only; whatever is factorised is
small (r x r). On two CPU cores a Householder QR of a 5120 x 32 block takes several times as long
as the products and the small eigenvalue problem used here.
"""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_lowrank.outlined import apart

# A direction smaller than this many units of rounding, relative to the whole block, is noise: a
# block is a sum over a batch, and comes with some ten roundings itself.
_NOISE_UNITS = 256.0

# The finest unit that a float64 Gram matrix resolves, because it squares the condition number:
# 256 * 2^-30 is an order of magnitude above sqrt(eps).
_GRAM_UNIT = 2.0**-30

# The spectral norm of B^T B - I that a basis is left with, in units of rounding: 7.6e-6 in float32.
_DEFECT_UNITS = 64.0


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


class Complement(NamedTuple):
    r"""What a block adds outside the span of a basis: `A = B X + Q Y`, with `Q = R T - B C`.

    Q is orthonormal and orthogonal to B. It is kept as a product, because nobody needs it on its
    own: what is multiplied with it is multiplied with R first and with the small T afterwards.

    Attributes:
        inside: `X = B^T A`, shape `(b, r)`.
        residual: R, shape `(n, r)`: the block less what it has in the span of B, or the block.
        root: T, shape `(r, k)`, `0 <= k <= min(r, n - b)`.
        leak: C, shape `(b, k)`: what `R T` has in the span of B.
        outside: `Y = Q^T A`, shape `(k, r)`.
    """

    inside: tf.Tensor
    residual: tf.Tensor
    root: tf.Tensor
    leak: tf.Tensor
    outside: tf.Tensor

    def formed(self, basis):
        """Q itself, shape `(n, k)`, for whoever wants to see it; no step does."""
        return tf.matmul(self.residual, self.root) - tf.matmul(basis, self.leak)


def complement(block, basis, static=False):
    r"""Returns the `Complement` of a block to a basis.

    `range([B, Q])` is `range([B, A])`, up to directions of the residual below rounding relative to
    `||A||_F`, which are noise and are left out. Nothing is left when `basis` already spans the
    space, or when `block` is zero or is not finite.

    With the eigenvectors `E` of `R^T R = E diag(s^2) E^T`, `T = E / s` and `Y = T^T R^T R`. The
    Gram matrix is formed in float64: the squared condition number then costs digits that float32
    data do not have. A faint direction is orthonormal up to (rounding of the block) / (its size),
    at worst about 1e-2; what enters a new basis from it is checked there, by `orthonormalized`.
    The leak is what rounding has left of B in `R T`: "twice is enough" (Giraud, Langou, Rozloznik,
    van den Eshof, Numer. Math. 101, 2005), and the second time can be done in the small matrices.

    Args:
        block: float tensor `A`, shape `(n, r)`.
        basis: float tensor `B` with orthonormal columns, shape `(n, b)`.
        static: bool. Keep `min(r, n - b)` columns in every case, those of noise as zeros, so that
            shapes follow from shapes, which XLA asks for.

    Example:

    >>> basis = tf.constant([[1.0], [0.0], [0.0]])
    >>> block = tf.constant([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    >>> added = complement(block, basis)
    >>> tf.matmul(added.residual, added.root).shape.as_list()
    [3, 1]
    """
    dtype = block.dtype
    inside = tf.matmul(basis, block, transpose_a=True)
    residual = block - tf.matmul(basis, inside)
    wide = tf.cast(residual, tf.float64)
    gram = tf.matmul(wide, wide, transpose_a=True)
    sizes, directions = _spectrum(gram)
    total = tf.reduce_sum(tf.square(tf.cast(inside, tf.float64))) + tf.linalg.trace(gram)
    noise = _NOISE_UNITS * max(np.finfo(dtype.as_numpy_dtype).eps, _GRAM_UNIT) * tf.sqrt(total)
    distinct = sizes > noise
    first = tf.shape(sizes)[0] - _room(block, basis)
    if static:
        root = directions[:, first:] * tf.where(distinct, 1.0 / sizes, tf.zeros_like(sizes))[first:]
    else:
        first = tf.maximum(first, tf.math.count_nonzero(~distinct, dtype=tf.int32))
        root = directions[:, first:] / sizes[first:]
    # Y = T^T R^T R. A product, since it takes a quarter of the time of a transposition here.
    outside = tf.matmul(root, gram, transpose_a=True)
    root = tf.cast(root, dtype)
    leak = tf.matmul(tf.matmul(basis, residual, transpose_a=True), root)
    return Complement(inside, residual, root, leak, tf.cast(outside, dtype))


def _room(block, basis):
    """How many columns a block can add to a basis at most."""
    return tf.minimum(tf.shape(block)[1], tf.shape(basis)[0] - tf.shape(basis)[1])


def _spectrum(gram):
    """Square roots of the eigenvalues, ascending, and eigenvectors of a Gram matrix."""
    # On a CPU, eigh raises on NaN, and would end the step before it can be discarded.
    gram = tf.where(tf.math.is_finite(tf.reduce_sum(gram)), gram, tf.zeros_like(gram))
    energies, directions = tf.linalg.eigh(gram)
    return tf.sqrt(tf.maximum(energies, 0.0)), directions


def rotate(basis, added, coordinates):
    """Returns `[B, Q] C` for the basis Q of a `Complement`.

    Args:
        basis: tensor `B`, shape `(n, b)`.
        added: `Complement` to it, with Q of shape `(n, k)`.
        coordinates: tensor `C` with orthonormal columns, shape `(b + k, r)`.

    Returns:
        Tensor of shape `(n, r)`.
    """
    # A singular vector comes with an error of some ten roundings, which would add up step by
    # step. One small Newton-Schulz step takes it to one rounding.
    gram = tf.matmul(coordinates, coordinates, transpose_a=True)
    return combine(basis, added, 1.5 * coordinates - 0.5 * tf.matmul(coordinates, gram))


def combine(basis, added, coordinates):
    """Returns `[B, Q] C` for any C; arguments as in `rotate`."""
    size = tf.shape(basis)[1]
    inside, outside = coordinates[:size], coordinates[size:]
    inside -= tf.matmul(added.leak, outside)
    return tf.matmul(basis, inside) + tf.matmul(added.residual, tf.matmul(added.root, outside))


def orthonormalized(left, core, right):
    """Returns the same matrix `B C D^T` with orthonormal bases.

    Bases that pass from step to step collect roundings, and faint directions bring more. Both are
    measured here, by one Gram matrix each. Where the spectral norm of `B^T B - I` or `D^T D - I`
    may exceed 7.6e-6 (float32), both are multiplied with the inverse roots of their Gram matrices,
    and what they leave goes into the core, whose singular value decomposition restores the gauge;
    else nothing is done.

    A basis that is too far off for that comes out of a Householder QR first, which bears columns of
    any kind. It is not enough by itself: its own roundings grow with n, to 6e-5 at 200,000 rows.

    Args:
        left: almost orthonormal tensor B, shape `(n, r)`.
        core: tensor C, shape `(r, r)`.
        right: almost orthonormal tensor D, shape `(m, r)`.

    Returns:
        Tuple of tensors `(B, C, D)` of the same shapes.
    """
    borne = _DEFECT_UNITS * np.finfo(core.dtype.as_numpy_dtype).eps
    one = identity_like(core)
    excesses = [tf.matmul(basis, basis, transpose_a=True) - one for basis in (left, right)]
    # In units of what is borne: the eighth power of an excess is no number that float32 holds.
    defect = tf.maximum(*(spectral_norm(excess / borne) for excess in excesses))

    def mended():
        parts = _mended(left.dtype)(left, core, right, *excesses, borne * defect)
        for part, old in zip(parts, (left, core, right)):
            part.set_shape(old.shape)
        return tuple(parts)

    return tf.cond(defect > 1.0, mended, lambda: (left, core, right))


@functools.cache
def _mended(dtype):
    """What `orthonormalized` does in rare steps: one function, which no layer has to trace anew."""

    def mended(left, core, right, left_excess, right_excess, defect):
        def householder():
            (left_q, left_r), (right_q, right_r) = tf.linalg.qr(left), tf.linalg.qr(right)
            one = identity_like(core)
            rest = [tf.matmul(q, q, transpose_a=True) - one for q in (left_q, right_q)]
            middle = tf.matmul(tf.matmul(left_r, core), right_r, transpose_b=True)
            return left_q, middle, right_q, *rest

        # The series leave a third of the cube.
        near = defect < np.finfo(dtype.as_numpy_dtype).eps ** (1 / 3)
        b, middle, d, *rest = tf.cond(
            near, lambda: (left, core, right, left_excess, right_excess), householder
        )
        (left_inverse, left_root), (right_inverse, right_root) = map(roots, rest)
        p, values, q = signed_svd(tf.matmul(tf.matmul(left_root, middle), right_root))
        return (
            tf.matmul(b, tf.matmul(left_inverse, p)),
            tf.linalg.diag(values),
            tf.matmul(d, tf.matmul(right_inverse, q)),
        )

    block, number = tf.TensorSpec([None, None], dtype), tf.TensorSpec([], dtype)
    return apart(mended, [block] * 5 + [number])


def roots(e):
    """`(I + E)^(-1/2)` and `(I + E)^(1/2)` for a small symmetric E, by their series."""
    one, square = identity_like(e), tf.matmul(e, e)
    inverse, root = one - 0.5 * e + 0.375 * square, one + 0.5 * e - 0.125 * square
    if e.dtype == tf.float64:  # a step of Newton doubles the digits
        inverse = 0.5 * tf.matmul(
            inverse, 3.0 * one - tf.matmul(tf.matmul(inverse, inverse), one + e)
        )
        root = tf.matmul(one + e, inverse)
    return inverse, root


def spectral_norm(matrix):
    """`||A^4||_F^(1/4)`: at least the spectral norm of a symmetric r x r A, within `r^(1/8)`."""
    square = tf.matmul(matrix, matrix)
    return tf.norm(tf.matmul(square, square)) ** 0.25


def signed_svd(matrix):
    """Singular value decomposition `P diag(s) Q^T` with the signs fixed by a rule.

    The entry of largest magnitude in each column of `P` is positive (the first of them, where
    several tie), so equal matrices give equal factors.

    Args:
        matrix: float tensor, shape `(a, b)`.

    Returns:
        `(P, s, Q)` of shapes `(a, k)`, `(k,)` and `(b, k)`, `k = min(a, b)`, `s` descending.
        Where `matrix` is not finite, s is NaN.
    """
    finite = tf.math.is_finite(tf.reduce_sum(matrix))
    values, left, right = tf.linalg.svd(tf.where(finite, matrix, tf.zeros_like(matrix)))
    values = tf.where(finite, values, tf.cast(float("nan"), values.dtype))
    left, right = fix_signs(left, right)
    return left, values, right


def fix_signs(left, right):
    """Turns pairs of singular vectors so that the largest entry of each left one is positive."""
    largest = tf.argmax(tf.abs(left), axis=0)
    chosen = tf.one_hot(largest, tf.shape(left)[0], axis=0, dtype=left.dtype)
    pivots = tf.reduce_sum(left * chosen, axis=0)
    signs = tf.where(pivots < 0, -tf.ones_like(pivots), tf.ones_like(pivots))
    return left * signs, right * signs


def identity_like(matrix):
    """The identity of the size and type of a square matrix."""
    return tf.eye(tf.shape(matrix)[0], dtype=matrix.dtype)


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


def extent(tensor, axis):
    """The length of an axis: an int where it is known when traced, else a tensor."""
    static = tensor.shape[axis]
    return tf.shape(tensor)[axis] if static is None else static
