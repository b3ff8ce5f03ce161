"""Counting weights: at full rank, as factors, in an export, and in training."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import keras

from keras_lowrank import keras_internals
from keras_lowrank.layers import LowRankLayer
from keras_lowrank.layers.find_layers import find_built_layers


class Compression(NamedTuple):
    """The numbers of weights of a model: of its kernels and tables, without biases.

    `print` shows each number with the share that it saves. The numbers differ in how they count a
    low-rank layer with an n x m kernel of rank r. A Tucker-2 kernel counts with all its factors.

    Attributes:
        full: int, `n m`: the model at full rank.
        factored: int, `r (n + m)`: the two factors `U S` and `V`, as the literature counts
            (arXiv:2205.13571, section 5).
        deployed: int, `min(r (n + m), n m)`: what an export holds.
        training: int, `r (n + m + r)` and the optimizer's state: what is held between two steps.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(8, rank=2)(inputs))
    >>> model.compression().factored
    32
    """

    full: int
    factored: int
    deployed: int
    training: int

    def saved(self, count: int) -> float:
        """Returns the share of the full-rank weights that `count` saves: 0.9 for a tenth."""
        return 1.0 - count / self.full

    def __str__(self) -> str:
        lines = [f"{'weights':<10} {'number':>12} {'saved':>8}", f"{'full':<10} {self.full:>12,}"]
        for name in ("factored", "deployed", "training"):
            count = getattr(self, name)
            lines.append(f"{name:<10} {count:>12,} {self.saved(count):>8.2%}")
        return "\n".join(lines)


def count_weights(model: keras.Model) -> Compression:
    """Returns the `Compression` of a model.

    Counts every trainable variable of two or more axes, frozen or not. Biases and the scales and
    offsets of normalization do not count.

    Args:
        model: built `keras.Model`, a `LowRankModel` or not.

    Returns:
        `Compression`.

    Raises:
        ValueError: the model has not been built.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, LowRankDense(8, rank=2)(inputs))
    >>> count = count_weights(model)
    >>> count.full, count.factored, count.saved(count.factored)
    (64, 32, 0.5)
    """
    if not model.built:
        raise ValueError(
            "The model must be built before its weights are counted. Call it on a batch, or "
            f"`build` it. Received: an unbuilt model {model.name!r}"
        )
    layers = find_built_layers(model).values()
    full = factored = deployed = training = _count_dense(model, layers)
    for layer in layers:
        factors = layer.factors
        factored += factors.factored
        training += factors.held
        if not layer.beside_kernel:  # a delta is merged into the kernel that is counted already
            full += factors.full
            deployed += min(factors.factored, factors.full)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        training += _count_state(model, optimizer)
    return Compression(full, factored, deployed, training)


def count_others(model: keras.Model, layers: Iterable[LowRankLayer]) -> tuple[int, int]:
    """Returns `(full, factored)` of all weights of a model but those of some low-rank layers.

    Frozen weights do not count in a model with adapters: its budget is for what is trained.
    """
    chosen = {id(layer) for layer in layers}
    built = find_built_layers(model).values()
    rest = [layer.factors for layer in built if id(layer) not in chosen]
    adapted = any(layer.beside_kernel for layer in layers)
    dense = _count_dense(model, built, trained_only=adapted)
    full = dense + sum(factors.full for factors in rest)
    return full, dense + sum(factors.factored for factors in rest)


def _count_dense(
    model: keras.Model, layers: Iterable[LowRankLayer], trained_only: bool = False
) -> int:
    factors = {id(variable) for layer in layers for variable in layer.factors.variables}
    weights = [v for v in counted_weights(model) if v.trainable or not trained_only]
    return sum(math.prod(v.shape) for v in weights if id(v) not in factors)


def counted_weights(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables that count as weights, by their use and not by their names."""
    added = _offsets_and_scales(model)
    made = {id(v): v for v in keras_internals.made_to_train(model)}
    return [v for key, v in made.items() if key not in added and len(v.shape) >= 2]


def _offsets_and_scales(model: keras.Model) -> dict[int, keras.Variable]:
    """Returns `{id: variable}` of biases and normalization, which may have several axes."""
    layers = [model, *keras_internals.all_layers(model)]
    held = [vars(layer).get(name) for layer in layers for name in ("bias", "beta", "gamma")]
    return {id(v): v for v in held if isinstance(v, keras.Variable)}


def _count_state(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> int:
    """Returns how many numbers an optimizer keeps for all weights."""
    added, variables = _offsets_and_scales(model), keras_internals.made_to_train(model)
    slots = [slot for slot in optimizer.variables if len(slot.shape) >= 2]
    owners = [keras_internals.kept_for(slot, variables) for slot in slots]
    return sum(math.prod(s.shape) for s, owner in zip(slots, owners) if id(owner) not in added)
