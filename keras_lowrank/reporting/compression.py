"""Counting weights: at full rank, as factors, as exported, as held in training."""

import math
from typing import NamedTuple

import keras

from keras_lowrank import keras_internals
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
        """The share of the full-rank weights that `count` saves: 0.9 for a tenth of them."""
        return 1.0 - count / self.full

    def __str__(self):
        lines = [f"{'weights':<10} {'number':>12} {'saved':>8}", f"{'full':<10} {self.full:>12,}"]
        for name in ("factored", "deployed", "training"):
            count = getattr(self, name)
            lines.append(f"{name:<10} {count:>12,} {self.saved(count):>8.2%}")
        return "\n".join(lines)


def count_weights(model):
    """Returns the `Compression` of a model.

    Every variable with two axes or more that was made to be trained counts as a weight, frozen or
    not, but for the biases of layers, and what they normalize with; a low-rank layer counts as its
    matrix. Statistics do not count.

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
            "The weights of a model can be counted once it is built. Call it on a batch, or "
            f"`build` it. Received: an unbuilt model {model.name!r}"
        )
    layers = find_built_layers(model).values()
    full = factored = deployed = training = _count_dense(model, layers)
    for layer in layers:
        n, m, rank = layer.factors.n, layer.factors.m, layer.factors.rank
        factored += rank * (n + m)
        training += rank * (n + m + rank)
        if not layer.beside_kernel:  # a delta is merged into the kernel that is counted already
            full += n * m
            deployed += min(rank * (n + m), n * m)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        training += _count_state(model, optimizer)
    return Compression(full, factored, deployed, training)


def count_others(model, layers):
    """`(full, factored)`: the weights of a model beside some of its low-rank layers.

    Frozen ones do not count in a model with adapters, whose budget is for what is trained.
    """
    chosen = {id(layer) for layer in layers}
    built = find_built_layers(model).values()
    rest = [layer.factors for layer in built if id(layer) not in chosen]
    adapted = any(layer.beside_kernel for layer in layers)
    dense = _count_dense(model, built, trained_only=adapted)
    full = dense + sum(factors.n * factors.m for factors in rest)
    return full, dense + sum(factors.rank * (factors.n + factors.m) for factors in rest)


def _count_dense(model, layers, trained_only=False):
    factors = {id(variable) for layer in layers for variable in layer.factors.variables}
    weights = [v for v in _weights(model) if v.trainable or not trained_only]
    return sum(math.prod(v.shape) for v in weights if id(v) not in factors)


def _weights(model):
    """What counts as a weight: told by what a variable is for, and not by its name."""
    added = _added(model)
    made = {id(v): v for v in keras_internals.made_to_train(model)}
    return [v for key, v in made.items() if key not in added and len(v.shape) >= 2]


def _added(model):
    """By id, what layers add to their outputs or scale them with; in attention, of several axes."""
    layers = [model, *keras_internals.all_layers(model)]
    held = [vars(layer).get(name) for layer in layers for name in ("bias", "beta", "gamma")]
    return {id(v): v for v in held if isinstance(v, keras.Variable)}


def _count_state(model, optimizer):
    """The numbers that an optimizer keeps for all weights."""
    added, variables = _added(model), keras_internals.made_to_train(model)
    slots = [slot for slot in optimizer.variables if len(slot.shape) >= 2]
    owners = [keras_internals.kept_for(slot, variables) for slot in slots]
    return sum(math.prod(s.shape) for s, owner in zip(slots, owners) if id(owner) not in added)
