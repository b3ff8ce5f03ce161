"""What one set of adapters has learned, as arrays: set aside, put back, and summed with another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_lowrank.adapters.delta import Delta
from keras_lowrank.manifold.point import Point

# Singular values of a sum below this share of the largest are rounding.
_ROUNDING = 1e-7


class AdapterState(NamedTuple):
    """One set of adapters.

    Attributes:
        points: list of `Point`, of arrays, one a delta.
        others: list of arrays, the other variables that are trained.
    """

    points: list[Point]
    others: list[np.ndarray]

    @classmethod
    def of(cls, deltas: Iterable[Delta], variables: Iterable[keras.Variable]) -> AdapterState:
        """The present state of deltas and of variables."""
        points = [Point(*(part.numpy() for part in one.factors.read())) for one in deltas]
        return cls(points, [variable.numpy() for variable in variables])

    def restore(self, deltas: Iterable[Delta], variables: Iterable[keras.Variable]) -> None:
        """Gives deltas and variables this state."""
        for delta, point in zip(deltas, self.points):
            delta.factors.assign(point)
        for variable, value in zip(variables, self.others):
            variable.assign(value)


def weighted_sum(
    states: Sequence[AdapterState], weights: Sequence[float], base: Sequence[np.ndarray]
) -> AdapterState:
    """The state whose deltas are `a U1 S1 V1^T + b U2 S2 V2^T + ...`; exact, at the rank it has.

    Args:
        states: list of `AdapterState`.
        weights: list of float.
        base: list of arrays, the other variables as the base has them: what was learned of them is
            summed, too.
    """
    points = [_sum(points, weights) for points in zip(*(state.points for state in states))]
    others = [
        start + sum(w * (state.others[i] - start) for w, state in zip(weights, states))
        for i, start in enumerate(base)
    ]
    return AdapterState(points, others)


def _sum(points: Sequence[Point], weights: Sequence[float]) -> Point:
    dtype = points[0].S.dtype
    left, right = (np.concatenate([p[i] for p in points], axis=1).astype("float64") for i in (0, 2))
    ranks = [point.S.shape[0] for point in points]
    core, at = np.zeros((sum(ranks), sum(ranks))), 0
    for point, weight, rank in zip(points, weights, ranks):
        core[at : at + rank, at : at + rank] = weight * point.S
        at += rank
    (q, r), (z, t) = np.linalg.qr(left), np.linalg.qr(right)
    a, values, b = np.linalg.svd(r @ core @ t.T)
    rank = max(1, int(np.sum(values > _ROUNDING * values[0])))
    parts = q @ a[:, :rank], np.diag(values[:rank]), z @ b[:rank].T
    return Point(*(part.astype(dtype) for part in parts))
