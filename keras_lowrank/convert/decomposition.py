r"""The best low-rank approximations of a kernel: of all ranks, or of one small rank.

With the right singular vectors Q of W, `W_r = W Q_r Q_r^T` is the best approximation of rank r.
Let `y = x W` and `C = E[x x^T]`. With the leading eigenvectors Q of `M = E[y y^T] = W^T C W`, the
same formula minimises the error of the layer's *outputs*,

    E ||x W - x W_r||^2 = ||C^{1/2} (W - W_r)||_F^2 = sum of the eigenvalues of M beyond r,

since these Q are the right singular vectors of `C^{1/2} W`. So neither C nor its root is needed,
which have the size of a patch squared; M has the size of the outputs squared.
"""

import numpy as np
from numpy.typing import DTypeLike

# Columns of W Q below this share of the largest have too few digits to be divided by their norm:
# the Gram matrix holds squares, with errors of 1e-16 of the largest.
_FAINT = 1e-5

# Share of W^T W in the second moment, relative to its trace. It orders the directions that no
# input has reached, and is below the resolution of float32 inputs elsewhere.
_REGULARIZATION = 1e-6

_ROWS = 4096  # of a block that is held in float64

# Of the randomised iteration: extra directions (at least so many, and one in so many of the rank),
# and rounds of power iteration. Four rounds keep the error within 1% of the least one even for a
# kernel of independent entries.
_OVERSAMPLING = 16, 4
_POWERS = 4

# It is used for sides of at least this length, and ranks of at most this part of one.
_LEAST = 1024
_SHARE = 8


class Decomposition:
    """The approximations `W_r = W Q_r Q_r^T` of a matrix.

    Q comes from the Gram matrix, formed in float64 block by block; where the rank is known and
    small, from a randomised subspace iteration. Only the vectors of the chosen rank are computed.

    Args:
        matrix: array W, shape `(n, m)`.
        moment: array `E[y y^T]` of the outputs `y = x W`, shape `(m, m)`; None for the plain
            singular value decomposition.
        rank: int or None, the only rank that will be asked for. Without a moment, and where
            `is_small(rank, (n, m))`, the error of `W_r` is within 1% of the least one.

    Attributes:
        values: float64 array, descending: the singular values of W, or of `C^{1/2} W`; the largest
            `rank` of them after the randomised iteration. The norm of a tail is the error of
            cutting it.

    Raises:
        ValueError: entries of W or of the moment that are not finite.

    Example:

    >>> from keras_lowrank.convert import Decomposition
    >>> Decomposition(np.diag([1.0, 3.0, 2.0])).values
    array([3., 2., 1.])
    """

    values: np.ndarray

    def __init__(
        self, matrix: np.ndarray, moment: np.ndarray | None = None, rank: int | None = None
    ) -> None:
        _check_finite("kernel", matrix)
        self._weighted = moment is not None
        # Without a moment the smaller Gram matrix is enough: a wide matrix is transposed.
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

    def _energy(self, moment: np.ndarray | None) -> np.ndarray:
        gram = _gram(self._matrix)
        if moment is None:
            return gram
        _check_finite("second moment of the outputs", moment)
        share = _REGULARIZATION * np.trace(moment) / max(np.trace(gram), np.finfo(float).tiny)
        return np.asarray(moment, "float64") + share * gram

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns `(U, S, V)` of `W_r` in the type of W; S is diagonal and descending.

        The entry of largest magnitude in each column of U is positive.

        Args:
            rank: int, r.
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


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Returns the singular values of a matrix, float64 and descending, without vectors.

    Args:
        matrix: array, shape `(n, m)`.

    Raises:
        ValueError: entries that are not finite.
    """
    _check_finite("kernel", matrix)
    energies = np.linalg.eigvalsh(_gram(matrix.T if matrix.shape[0] < matrix.shape[1] else matrix))
    return np.sqrt(np.maximum(energies[::-1], 0.0))


def is_small(rank: int, shape: tuple[int, ...]) -> bool:
    """Whether a rank is so small for a matrix that the randomised iteration is faster.

    `benchmarks/conversion.py` measures both.

    Args:
        rank: int.
        shape: `(n, m)`.
    """
    return min(shape) >= _LEAST and rank <= min(shape) / _SHARE


def _leading(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns approximations of the `count` largest eigenpairs of `A^T A`, ordered as in `eigh`.

    Randomised subspace iteration (Halko, Martinsson, Tropp, SIAM Review 2011, algorithm 4.4), then
    the Rayleigh-Ritz step in its subspace. The random numbers are always the same, so that the same
    kernel has the same factors.
    """
    start = np.random.default_rng(0).standard_normal((matrix.shape[1], count))
    basis = start.astype(matrix.dtype)
    for _ in range(_POWERS):
        # Made orthonormal after each product: A^T A alone would lose small directions.
        basis = np.linalg.qr(matrix.T @ np.linalg.qr(matrix @ basis)[0])[0]
    # In float64, so that `A Q` divided by its norms is orthonormal.
    basis = np.linalg.qr(basis.astype("float64"))[0]
    energies, rotation = np.linalg.eigh(_gram(_times(matrix, basis, "float64")))
    return energies, basis @ rotation


def _gram(matrix: np.ndarray) -> np.ndarray:
    total = np.zeros((matrix.shape[1],) * 2)
    for start in range(0, matrix.shape[0], _ROWS):
        block = matrix[start : start + _ROWS].astype("float64")
        total += block.T @ block
    return total


def _times(matrix: np.ndarray, basis: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    product = np.empty((matrix.shape[0], basis.shape[1]), dtype)
    for start in range(0, matrix.shape[0], _ROWS):
        block = matrix[start : start + _ROWS].astype("float64")
        product[start : start + _ROWS] = block @ basis
    return product


def _check_finite(name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise ValueError(f"Every entry of a {name} must be finite. Received: NaN or infinity")
