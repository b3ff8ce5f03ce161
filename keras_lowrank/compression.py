"""Counting weights: at full rank, as factors, as exported, as held in training."""

import math
import re
from typing import NamedTuple

from keras_lowrank.layers.low_rank_layer import find_built_layers


class Compression(NamedTuple):
    """Numbers of weights of a model. Weights are kernels and tables; biases are not counted.

    Attributes:
        full: the model at full rank, `n m` a low-rank layer.
        factored: `r (n + m)` a low-rank layer, both factors of the folded pair `U S, V`: how the
            literature counts (arXiv:2205.13571, section 5).
        deployed: what an export holds: the smaller of that and `n m`.
        training: what is held between two steps: `r (n + m + r)`, and the optimizer's state of
            the same shapes.

    `print` shows each with the share that is saved. Example: `model.compression().factored`.
    """

    full: int
    factored: int
    deployed: int
    training: int

    def saved(self, count):
        """The share of the full-rank weights that `count` saves, in percent."""
        return 100.0 * (1.0 - count / self.full)

    def __str__(self):
        lines = [f"{'weights':<10} {'number':>12} {'saved':>8}", f"{'full':<10} {self.full:>12,}"]
        for name in ("factored", "deployed", "training"):
            count = getattr(self, name)
            lines.append(f"{name:<10} {count:>12,} {self.saved(count):>7.2f}%")
        return "\n".join(lines)


def count_weights(model):
    """Returns the `Compression` of a model.

    Every variable with two axes or more that is no bias counts as a weight; a low-rank layer
    counts as its matrix.

    Raises:
        ValueError: the model has not been built.
    """
    if not model.built:
        raise ValueError(
            "The weights of a model can be counted once it is built. Call it on a batch, or "
            f"`build` it. Received: an unbuilt model {model.name!r}"
        )
    layers = find_built_layers(model).values()
    full = factored = deployed = training = _count_dense(model, layers)
    for n, m, rank in ((one.factors.n, one.factors.m, one.factors.rank) for one in layers):
        full += n * m
        factored += rank * (n + m)
        deployed += min(rank * (n + m), n * m)
        training += rank * (n + m + rank)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        training += sum(math.prod(v.shape) for v in optimizer.variables if _is_weight(v))
    return Compression(full, factored, deployed, training)


def count_others(model, layers):
    """`(full, factored)`: the weights of a model beside some of its low-rank layers."""
    chosen = {id(layer) for layer in layers}
    built = find_built_layers(model).values()
    rest = [layer.factors for layer in built if id(layer) not in chosen]
    dense = _count_dense(model, built)
    full = dense + sum(factors.n * factors.m for factors in rest)
    return full, dense + sum(factors.rank * (factors.n + factors.m) for factors in rest)


def _count_dense(model, layers):
    factors = {id(variable) for layer in layers for variable in layer.factors.variables}
    return sum(
        math.prod(v.shape)
        for v in model.variables
        if id(v) not in factors and _is_weight(v) and _is_float(v)
    )


def _is_weight(variable):
    # A bias has several axes in a layer of attention. The optimizer's state of one is named
    # after its path and what it holds.
    return len(variable.shape) >= 2 and not re.search(r"(^|_)bias(_[a-z]+)?$", variable.name)


def _is_float(variable):
    return "float" in str(variable.dtype)
