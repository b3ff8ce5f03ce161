"""A truncation rule within the bounds of one layer, and the policies of one step."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

from keras_lowrank.ranks.truncation import KeepRank, Truncation

if TYPE_CHECKING:
    from keras_lowrank.manifold.point import Point


class Policy(NamedTuple):
    """A truncation within the bounds of one layer.

    Attributes:
        truncation: `Truncation`.
        min_rank: int, the least rank to keep.
        max_rank: int or None, the largest rank to keep.
        grown_rank: int or None, the largest rank that trial directions may lead to.

    Example:

    >>> policy = Policy(Tolerance(0.5), min_rank=2)
    >>> int(policy.rank(tf.constant([4.0, 0.1, 0.1]), current=tf.constant(3)))
    2
    """

    truncation: Truncation
    min_rank: int = 1
    max_rank: int | None = None
    grown_rank: int | None = None

    @property
    def keeps_rank(self) -> bool:
        """Whether the rank stays, whatever the singular values are."""
        return type(self.truncation).rank is KeepRank.rank

    def parts(self) -> tuple[tuple, dict[str, Any]]:
        """Returns `(kind, tensors)`: policies of one kind decide alike, given the same tensors."""
        attributes = vars(self.truncation)
        tensors = {n: value for n, value in attributes.items() if isinstance(value, tf.Tensor)}
        ranks = {name: getattr(self, name) for name in ("min_rank", "max_rank", "grown_rank")}
        bounds = {n: tf.cast(rank, tf.int32) for n, rank in ranks.items() if rank is not None}
        # All else is compared by identity: it need not define equality or a hash.
        others = frozenset((n, id(value)) for n, value in attributes.items() if n not in tensors)
        kind = type(self.truncation), frozenset(tensors), others, frozenset(bounds)
        return kind, {"truncation": tensors, "bounds": bounds}

    def of_parts(self, tensors: dict[str, Any]) -> Policy:
        """A policy of the same kind with these tensors, the inverse of `parts`."""
        truncation = copy.copy(self.truncation)
        vars(truncation).update(tensors["truncation"])
        return self._replace(truncation=truncation, **tensors["bounds"])

    def rank(self, singular_values: tf.Tensor, current: tf.Tensor) -> tf.Tensor:
        """`Truncation.rank`, within the bounds."""
        rank = self.truncation.rank(singular_values, current)
        most = self.most(tf.shape(singular_values)[0])
        return tf.minimum(tf.maximum(rank, self.min_rank), most)

    def most(self, available: tf.Tensor) -> tf.Tensor:
        """The largest rank allowed, out of `available` singular values."""
        return available if self.max_rank is None else tf.minimum(self.max_rank, available)

    def room(self, rank: tf.Tensor, available: tf.Tensor) -> tf.Tensor:
        """How many trial directions fit beside `rank`, out of `available` in all."""
        most = self.most(available)
        most = most if self.grown_rank is None else tf.minimum(self.grown_rank, most)
        return tf.maximum(most - rank, 0)


def plan(
    policies: list[Policy], matrices: list[Point], step: tf.Tensor, others: tuple
) -> list[Policy]:
    """The policies of one step; layers that share a truncation are planned together.

    Args:
        policies: list of `Policy`, one a matrix.
        matrices: list of `Point`.
        step: scalar float tensor, the number of the step: 1, 2, ...
        others: `(full, factored)`, the number of all other weights of the model.
    """
    planned, remaining = list(policies), list(range(len(policies)))
    while remaining:
        truncation = policies[remaining[0]].truncation
        group = [i for i in remaining if policies[i].truncation.together_with(truncation)]
        remaining = [i for i in remaining if i not in group]
        outside = [f for i, f in enumerate(matrices) if i not in group]
        full = others[0] + sum(f.U.shape[0] * f.V.shape[0] for f in outside)
        factored = others[1] + sum(_rank(f) * (f.U.shape[0] + f.V.shape[0]) for f in outside)
        least = [policies[i].min_rank for i in group]
        now = truncation.plan([matrices[i] for i in group], step, (full, factored), least)
        for i, chosen in zip(group, now):
            planned[i] = policies[i]._replace(truncation=chosen)
    return planned


def _rank(factors):
    return tf.cast(tf.shape(factors.S)[0], tf.float32)
