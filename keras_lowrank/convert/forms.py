"""The forms that a kernel is held in: their ranks, their weights, and how they are cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from keras_lowrank.convert.decomposition import Decomposition, singular_values
from keras_lowrank.manifold.factors import Factors
from keras_lowrank.manifold.tucker_factors import TuckerFactors, tucker_factors_of
from keras_lowrank.ranks.truncation import Truncation

# As `layer.rank`: an int, or the two ranks of a Tucker-2 kernel by name.
Rank: TypeAlias = Any


class Decomposed(NamedTuple):
    """A kernel that can be cut at any rank.

    Attributes:
        values: list of arrays, the singular values on each side, descending.
        factors: callable from a rank to `(U, S, V)`.
    """

    values: list[np.ndarray]
    factors: Callable[[Rank], tuple[np.ndarray, ...]]


class MatrixForm(NamedTuple):
    """A matrix `W = U S V^T`, which has one rank.

    Attributes:
        n: int, the rows of W.
        m: int, the columns of W.
    """

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n} x {self.m}"

    @property
    def full(self) -> int:
        """The weights of the whole kernel."""
        return self.n * self.m

    def weights(self, rank: Rank) -> int:
        """The weights of the factors, counted as `Compression.factored`."""
        return rank * (self.n + self.m)

    def weights_behind(self, rank: Rank) -> int:
        """Those of them that multiply with the coordinates of the inputs in U."""
        return rank * self.m

    def rank(self, sizes: Sequence[int]) -> Rank:
        """The rank of so many directions on each side, inside the bounds of the form."""
        return min(max(sizes[0], 1), self.n, self.m)

    def sides(self, rank: Rank) -> dict[str, tuple[MatrixForm, int | None]]:
        """Returns `{name: (unfolding, rank)}` of all sides; a single one has no name."""
        return {"": (self, rank)}

    def truncations(self, rule: Truncation) -> list[Truncation]:
        """The rules for the rank of each side."""
        return [rule]

    def values(self, matrix: np.ndarray) -> list[np.ndarray]:
        """The singular values on each side, float64 and descending."""
        return [singular_values(matrix)]

    def decompose(
        self, matrix: np.ndarray, moment: np.ndarray | None, rank: int | None
    ) -> Decomposed:
        """Returns the kernel ready to be cut; arguments as in `Decomposition`."""
        decomposition = Decomposition(matrix, moment, rank)
        return Decomposed([decomposition.values], decomposition.factors)

    def zeros(self) -> tuple[np.ndarray, ...]:
        """Factors of rank 1 that are zero."""
        return np.zeros((self.n, 1)), np.zeros((1, 1)), np.zeros((self.m, 1))


class TuckerForm(NamedTuple):
    """A Tucker-2 tensor `W_k = U S_k V^T`, whose rank is `{"input": p, "output": q}`.

    Attributes:
        places: int, the size of the window.
        n: int, the input channels.
        m: int, the output channels.
    """

    places: int
    n: int
    m: int

    def __str__(self) -> str:
        return " x ".join(map(str, self))

    @property
    def full(self) -> int:
        """As in `MatrixForm`, and so the others."""
        return math.prod(self)

    def weights(self, rank: Rank) -> int:
        return self.n * rank["input"] + self.weights_behind(rank)

    def weights_behind(self, rank: Rank) -> int:
        return rank["output"] * (self.places * rank["input"] + self.m)

    def rank(self, sizes: Sequence[int]) -> Rank:
        p, q = (min(max(size, 1), most) for size, most in zip(sizes, (self.n, self.m)))
        # An unfolding of the core has at most as many independent rows as it has columns.
        p = min(p, self.places * q)
        return {"input": p, "output": min(q, self.places * p)}

    def sides(self, rank: Rank) -> dict[str, tuple[MatrixForm, int | None]]:
        n, m = self.n, self.m
        unfoldings = (MatrixForm(n, self.places * m), MatrixForm(m, self.places * n))
        ranks = rank or dict.fromkeys(("input", "output"))
        return dict(zip(ranks, zip(unfoldings, ranks.values())))

    def truncations(self, rule: Truncation) -> list[Truncation]:
        return [rule.for_side(side) for side in (0, 1)]

    def values(self, matrix: np.ndarray) -> list[np.ndarray]:
        core = matrix.reshape(self)
        unfolded = (np.moveaxis(core, axis, 0).reshape(core.shape[axis], -1) for axis in (1, 2))
        return [singular_values(one) for one in unfolded]

    def decompose(
        self, matrix: np.ndarray, moment: np.ndarray | None, rank: int | None
    ) -> Decomposed:
        def factors(rank):
            kernel = matrix.reshape(self).astype("float64")
            return tucker_factors_of(kernel, (rank["input"], rank["output"]))

        # With `values` of the whole kernel: the squared error of the cut is at most the sum of both
        # squared tails.
        return Decomposed(self.values(matrix), factors)

    def zeros(self) -> tuple[np.ndarray, ...]:
        return np.zeros((self.n, 1)), np.zeros((self.places, 1, 1)), np.zeros((self.m, 1))


Form: TypeAlias = MatrixForm | TuckerForm


def form_of(factors: Factors) -> Form:
    """Returns the form that the factors of a layer have."""
    if isinstance(factors, TuckerFactors):
        return TuckerForm(factors.places, factors.n, factors.m)
    return MatrixForm(factors.n, factors.m)
