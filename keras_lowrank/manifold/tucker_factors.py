"""The variables of one Tucker-2 kernel, whose two ranks may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_lowrank.manifold.factors import Factors, RankVariable
from keras_lowrank.manifold.tucker import TuckerPoint, TuckerVector


class TuckerFactors(Factors):
    """The three variables of a kernel `W_k = U S_k V^T`, at any two ranks.

    Args:
        initializers: three callables `(shape, dtype) -> tensor`, for U, S and V.
        n: int, input channels.
        m: int, output channels.
        places: int, the size K of the window.
        ranks: pair of int, the initial ranks on the sides of U and V.
        dtype: str, the float type of the factors.
    """

    point_type = TuckerPoint
    vector_type = TuckerVector

    def __init__(
        self,
        initializers: Sequence[Callable[..., tf.Tensor]],
        n: int,
        m: int,
        places: int,
        ranks: tuple[int, int],
        dtype: str,
    ) -> None:
        (make_u, make_s, make_v), (left, right) = initializers, ranks
        self.n, self.m, self.places = n, m, places
        self.U = RankVariable(make_u, (n, left), (1,), dtype, name="U")
        self.S = RankVariable(make_s, (places, left, right), (1, 2), dtype, name="S")
        self.V = RankVariable(make_v, (m, right), (1,), dtype, name="V")
        self._owner = None

    @property
    def rank(self) -> dict[str, int]:
        """The present ranks, of the input and of the output channels."""
        _, left, right = self.S.shape
        return {"input": int(left), "output": int(right)}

    @property
    def shape(self) -> str:
        return f"{self.places} x {self.n} x {self.m}"

    @property
    def full(self) -> int:
        return self.places * self.n * self.m

    @property
    def factored(self) -> int:
        """The number of weights in U, S and V."""
        return self.held

    @property
    def columns(self) -> int:
        return sum(self.rank.values())

    def deployed(self) -> list[tf.Tensor]:
        """The factors of an export: all three."""
        return list(self.read())

    def singular_values(self) -> np.ndarray:
        """The singular values of the unfolding `(n, K m)` of the kernel, descending."""
        u, s, v = (tensor.numpy() for tensor in self.read())
        left, right = (np.linalg.qr(basis, mode="r") for basis in (u, v))
        core = np.einsum("ap,kpq,bq->akb", left, s, right)
        return np.linalg.svd(core.reshape(len(core), -1), compute_uv=False)

    def orthonormalize(self) -> None:
        present = self.read()
        self.check_shapes(*(tensor.shape for tensor in present))
        u, s, v = present
        (u, left), (v, right) = tf.linalg.qr(u), tf.linalg.qr(v)
        self.assign(TuckerPoint(u, tf.matmul(tf.matmul(left, s), right, transpose_b=True), v))

    def check_shapes(self, u: Sequence, s: Sequence, v: Sequence) -> None:
        """Raises ValueError unless the shapes are those of one kernel of this size."""
        n, m, places = self.n, self.m, self.places
        fit = len(u) == len(v) == 2 and len(s) == 3
        fit = fit and all(
            None in (one, other) or one == other
            for one, other in ((u[0], n), (v[0], m), (s[0], places), (s[1], u[1]), (s[2], v[1]))
        )
        fit = fit and all(
            rank is None or 1 <= rank <= most for rank, most in ((u[1], n), (v[1], m))
        )
        if not fit:
            raise ValueError(
                f"The factors of a kernel with {places} x {n} x {m} entries must have the shapes "
                f"U ({n}, p), S ({places}, p, q) and V ({m}, q), 1 <= p <= {n} and 1 <= q <= {m}. "
                f"Received: U {tuple(u)}, S {tuple(s)}, V {tuple(v)}"
            )


def tucker_factors_of(kernel: np.ndarray, ranks: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """`(U, S, V)` of the truncated higher-order SVD (ST-HOSVD) of a kernel.

    Args:
        kernel: float64 array, its last two axes the channels.
        ranks: pair of int.
    """
    core = kernel.reshape(-1, *kernel.shape[-2:])
    bases = []
    for axis, rank in zip((1, 2), ranks):
        unfolding = np.moveaxis(core, axis, 0)
        basis = np.linalg.svd(unfolding.reshape(len(unfolding), -1), full_matrices=False)[0]
        basis = basis[:, :rank]
        core = np.moveaxis(np.tensordot(basis, core, (0, axis)), 0, axis)
        bases.append(basis)
    return bases[0], core, bases[1]
