"""From singular values to ranks: a number, a tolerance, an energy, or a budget of weights."""

import bisect
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lowrank.convert.forms import Form, Rank
from keras_lowrank.convert.selection import matches, unknown
from keras_lowrank.layers.arguments import positive_integer
from keras_lowrank.ranks.truncation import Tolerance


class Rule:
    """How the ranks of the layers are chosen. Exactly one of four arguments is given.

    Args:
        rank: int, or dict from the path, name or pattern of layers to int.
        tolerance: float in [0, 1). The norm of the tail is at most that share of the norm.
        energy: float in (0, 1]. The squared norm kept is at least that share of it.
        budget: int, the number of weights of the whole model.

    Attributes:
        rank: as given.
        budget: as given.

    Raises:
        ValueError: none or several of them, or one outside its range.
    """

    def __init__(
        self,
        rank: int | dict[str, int] | None = None,
        tolerance: float | None = None,
        energy: float | None = None,
        budget: int | None = None,
    ) -> None:
        ways = {"rank": rank, "tolerance": tolerance, "energy": energy, "budget": budget}
        given = {name: value for name, value in ways.items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                "Exactly one of `rank`, `tolerance`, `energy` and `budget` must be given. "
                f"Received: {given or 'none of them'}"
            )
        self.rank, self.budget = rank, budget
        self._tolerance: Tolerance | None = None
        if rank == {}:
            raise ValueError("`rank` must name at least one layer. Received: rank={}")
        for name, value in rank.items() if isinstance(rank, dict) else [("rank", rank)]:
            if value is not None:
                _check_count(name, value)
        if budget is not None:
            _check_count("budget", budget)
        if tolerance is not None:
            _check_share("tolerance", tolerance, "[0, 1)", lambda x: 0 <= x < 1)
            self._tolerance = Tolerance(tolerance)
        if energy is not None:
            _check_share("energy", energy, "(0, 1]", lambda x: 0 < x <= 1)
            self._tolerance = Tolerance(math.sqrt(1.0 - energy))

    def concerned(self, layers: dict[str, Any]) -> dict[str, Any]:
        """Returns the layers that a dict of ranks names; under another rule, all.

        Args:
            layers: `{path: layer}`.

        Raises:
            ValueError: a name that means no layer.
        """
        if not isinstance(self.rank, dict):
            return layers
        for text in self.rank:
            if not any(matches(path, layer, text) for path, layer in layers.items()):
                raise unknown(layers, "rank", text)
        return {path: layer for path, layer in layers.items() if self.asked(path, layer)}

    def ranks(
        self,
        layers: dict[str, Any],
        forms: dict[str, Form],
        values: dict[str, list[np.ndarray]],
        others: int,
        only_smaller: bool,
    ) -> dict[str, Rank | None]:
        """Returns `{path: rank}`; None where the layer stays dense.

        Args:
            layers: `{path: layer}`.
            forms: `{path: Form}`.
            values: `{path: [singular values of each side]}`, descending.
            others: int, the weights of the model beside these layers.
            only_smaller: bool. Leave a layer dense where its factors are no smaller.

        Raises:
            ValueError: a budget below the weights at rank 1 everywhere.
        """
        if self.budget is not None:
            return spend_budget(self.budget, others, forms, values, only_smaller)
        chosen = {}
        for path, layer in layers.items():
            form, sides = forms[path], values[path]
            if self._tolerance is not None:
                rules = zip(form.truncations(self._tolerance), sides)
                sizes = [int(rule.rank(tf.constant(side), None)) for rule, side in rules]
            else:
                sizes = [self.asked(path, layer) or 1] * len(sides)
            chosen[path] = form.rank(sizes)
        low_rank = _low_rank(chosen, forms, only_smaller)
        return {path: rank if path in low_rank else None for path, rank in chosen.items()}

    def asked(self, path: str, layer: Any) -> int | None:
        """Returns the rank that was given for a layer; None where the singular values decide."""
        if not isinstance(self.rank, dict):
            return self.rank
        wanted = [rank for text, rank in self.rank.items() if matches(path, layer, text)]
        return wanted[-1] if wanted else None  # the last match counts, as in a style sheet


def spend_budget(
    budget: int,
    others: int,
    forms: dict[str, Form],
    values: dict[str, list[np.ndarray]],
    only_smaller: bool,
) -> dict[str, Rank | None]:
    """Returns the ranks that use up a budget of weights: `{path: rank or None}`.

    Every layer gets rank 1. Then singular values are added in the order of their share of the
    layer's energy, as in `Budget`. A layer whose factors would be no smaller than its kernel stays
    dense, and the others get what it would have cost.

    Args:
        budget: int, the number of weights of the whole model.
        others: int, the weights of the model beside these layers.
        forms: `{path: Form}`.
        values: `{path: [singular values of each side]}`, descending.
        only_smaller: bool, as in `Rule.ranks`.

    Raises:
        ValueError: a budget below the weights at rank 1 everywhere.
    """
    ones = {path: form.rank([1] * len(values[path])) for path, form in forms.items()}
    ranks, low_rank = ones, _low_rank(ones, forms, only_smaller)
    least = others + _cost(ranks, low_rank, forms)
    if least > budget:
        raise ValueError(
            f"`budget` must be at least {least:,}, the weights at rank 1 in every layer with all "
            f"that stays dense. Received: budget={budget:,}"
        )
    while low_rank:
        paths = low_rank
        sides = [(path, side) for path in paths for side in values[path]]
        shares = [_shares(side)[1:] for _, side in sides]
        owners = np.repeat(np.arange(len(sides)), [len(some) for some in shares])
        owners = owners[np.argsort(-np.concatenate(shares), kind="stable")]

        def ranks_with(count, paths=paths, owners=owners, sides=sides):
            sizes = iter((1 + np.bincount(owners[:count], minlength=len(sides))).tolist())
            return {path: forms[path].rank([next(sizes) for _ in values[path]]) for path in paths}

        def cost_with(count, paths=paths, ranks_with=ranks_with):
            return others + _cost(ranks_with(count), paths, forms)

        counts = range(len(owners) + 1)
        ranks = ranks_with(bisect.bisect_right(counts, budget, key=cost_with) - 1)
        low_rank = _low_rank(ranks, forms, only_smaller)
        if low_rank == paths:
            break
    return {path: ranks[path] if path in low_rank else None for path in forms}


def _shares(values: np.ndarray) -> np.ndarray:
    energies = np.square(values)
    return energies / max(np.sum(energies), np.finfo(float).tiny)


def _low_rank(ranks: dict[str, Rank], forms: dict[str, Form], only_smaller: bool) -> list[str]:
    """Returns the layers whose factors are smaller than the kernel, or all."""
    return [
        path
        for path, rank in ranks.items()
        if not only_smaller or forms[path].weights(rank) < forms[path].full
    ]


def _cost(ranks: dict[str, Rank], low_rank: Iterable[str], forms: dict[str, Form]) -> int:
    return sum(
        form.weights(ranks[path]) if path in low_rank else form.full for path, form in forms.items()
    )


def _check_count(name: str, value: Any) -> None:
    positive_integer(name, value)


def _check_share(name: str, value: Any, interval: str, contains: Callable[[float], bool]) -> None:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not contains(value):
        raise ValueError(f"`{name}` must be a number in {interval}. Received: {name}={value!r}")
