r"""The best low-rank approximations of a kernel, all ranks at once or the small ones alone.

With the right singular vectors Q of W, `W_r = W Q_r Q_r^T` is the best approximation of rank r.
With the leading eigenvectors Q of `M = E[y y^T] = W^T C W` in their place, where `y = x W` and
`C = E[x x^T]`, the same formula minimises the error of the layer's *outputs*,

    E ||x W - x W_r||^2 = ||C^{1/2} (W - W_r)||_F^2 = sum of the eigenvalues of M beyond r,

since these Q are the right singular vectors of `C^{1/2} W`. So C, of the size of a patch squared,
is never needed, let alone its root or its inverse; M has the size of the outputs.
"""

import numpy as np

# Down to this size, relative to the largest, a column of W Q has digits enough to be divided by
# its norm: the Gram matrix, of squares, is off by 1e-16 of its own largest entries.
_FAINT = 1e-5

# Share of W^T W in the second moment, relative to its trace: it orders the directions that no
# input of the data has reached, and is below what float32 inputs resolve elsewhere.
_REGULARIZATION = 1e-6

_ROWS = 4096  # of a block that is held in float64

# Of the randomised way: directions beyond those asked for, at least that many and at least that
# part of them, and rounds of power iteration. The hardest kernel has independent entries: 1024 x
# 1024 at rank 128 is 2.5, 1.3 and 0.7% above the least error after 2, 3 and 4 rounds.
_OVERSAMPLING = 16, 4
_POWERS = 4

# Where that way is taken: sides of at least this length, ranks of at most this part of one.
_LEAST = 1024
_SHARE = 8


class Decomposition:
    """The approximations `W_r = W Q_r Q_r^T` of a matrix.

    The Gram matrix is formed in float64, block by block, in less than half of the time of
    `numpy.linalg.svd` in float32. Only the side of r vectors that is asked for is ever multiplied
    out. Where that r is known and small, Q comes from a randomised subspace iteration, which never
    forms the Gram matrix.

    Args:
        matrix: array W, shape `(n, m)`.
        moment: array `E[y y^T]` of the outputs `y = x W`, shape `(m, m)`, or None for the plain
            singular value decomposition.
        rank: int or None, the only rank that will be asked for. Where `is_small(rank, (n, m))` and
            there is no moment, the error of `W_r` is within 1% of the least one.

    Attributes:
        values: float64 array, descending: the singular values of W, or of `C^{1/2} W`. The norm of
            a tail is the error that cutting it makes. Only the largest `rank` of them if those
            alone were found.

    Raises:
        ValueError: entries of W or of the moment that are not finite.
    """

    def __init__(self, matrix, moment=None, rank=None):
        _check_finite("kernel", matrix)
        self._weighted = moment is not None
        # Without a moment the smaller Gram matrix does: a wide matrix is decomposed lying down.
        self._wide = not self._weighted and matrix.shape[0] < matrix.shape[1]
        self._matrix = matrix.T if self._wide else matrix
        most = min(matrix.shape)
        if not self._weighted and rank is not None and is_small(rank, matrix.shape):
            least, part = _OVERSAMPLING
            energies, vectors = _leading(self._matrix, rank + max(least, rank // part))
            most = rank
        else:
            energies, vectors = np.linalg.eigh(self._energy(moment))
        self.values = np.sqrt(np.maximum(energies[::-1][:most], 0.0))
        self._vectors = vectors[:, ::-1][:, :most]

    def _energy(self, moment):
        gram = _gram(self._matrix)
        if moment is None:
            return gram
        _check_finite("second moment of the outputs", moment)
        share = _REGULARIZATION * np.trace(moment) / max(np.trace(gram), np.finfo(float).tiny)
        return np.asarray(moment, "float64") + share * gram

    def factors(self, rank):
        """Returns `(U, S, V)` of `W_r` in the type of W; S is diagonal and descending.

        The entry of largest magnitude in each column of U is positive.
        """
        basis, values = self._vectors[:, :rank], self.values[:rank]
        if self._weighted or values[-1] <= _FAINT * values[0]:
            left, triangular = np.linalg.qr(_times(self._matrix, basis, "float64"))
            inner, values, outer = np.linalg.svd(triangular)
            product, basis = left @ inner, basis @ outer.T
        else:
            product = _times(self._matrix, basis / values, self._matrix.dtype)
        left, right = (basis, product) if self._wide else (product, basis)
        left, right = (side.astype(self._matrix.dtype, copy=False) for side in (left, right))
        pivots = np.take_along_axis(left, np.abs(left).argmax(axis=0)[None], axis=0)
        signs = np.where(pivots < 0, -1, 1).astype(left.dtype)
        return left * signs, np.diag(values), right * signs


def singular_values(matrix):
    """The singular values of a matrix alone, float64 and descending.

    Raises:
        ValueError: entries that are not finite.
    """
    _check_finite("kernel", matrix)
    energies = np.linalg.eigvalsh(_gram(matrix.T if matrix.shape[0] < matrix.shape[1] else matrix))
    return np.sqrt(np.maximum(energies[::-1], 0.0))


def is_small(rank, shape):
    """bool, whether a rank is so small beside a matrix that the randomised way is the faster one.

    On one core, 2048 x 2048 takes 3.2 s by `numpy.linalg.svd`, 1.5 s for all ranks, and 0.06, 0.12
    and 0.7 s for ranks 16, 64 and 256 alone (`benchmarks/conversion.py`). On 4608 x 512, where all
    ranks take 0.06 s, rank 64 alone took 0.09 s.
    """
    return min(shape) >= _LEAST and rank <= min(shape) / _SHARE


def _leading(matrix, count):
    """The `count` largest eigenvalues of `A^T A`, nearly, and their vectors; ordered as by `eigh`.

    Randomised subspace iteration (Halko, Martinsson, Tropp, SIAM Review 2011, algorithm 4.4), and
    the Rayleigh-Ritz step in the subspace that it finds. Always from the same random numbers: the
    same kernel has the same factors.
    """
    start = np.random.default_rng(0).standard_normal((matrix.shape[1], count))
    basis = start.astype(matrix.dtype)
    for _ in range(_POWERS):
        # Orthonormal after each product: in the square of A, faint directions would be lost.
        basis = np.linalg.qr(matrix.T @ np.linalg.qr(matrix @ basis)[0])[0]
    # In float64 as the rest, so that `A Q` divided by its norms is orthonormal.
    basis = np.linalg.qr(basis.astype("float64"))[0]
    energies, rotation = np.linalg.eigh(_gram(_times(matrix, basis, "float64")))
    return energies, basis @ rotation


def _gram(matrix):
    total = np.zeros((matrix.shape[1],) * 2)
    for start in range(0, matrix.shape[0], _ROWS):
        block = matrix[start : start + _ROWS].astype("float64")
        total += block.T @ block
    return total


def _times(matrix, basis, dtype):
    product = np.empty((matrix.shape[0], basis.shape[1]), dtype)
    for start in range(0, matrix.shape[0], _ROWS):
        block = matrix[start : start + _ROWS].astype("float64")
        product[start : start + _ROWS] = block @ basis
    return product


def _check_finite(name, array):
    if not np.isfinite(array).all():
        raise ValueError(f"Every entry of a {name} must be finite. Received: NaN or infinity")
