"""What `make_low_rank` has done: the report that it returns."""

import math
from typing import Any, NamedTuple

import keras

from keras_lowrank.convert.converter import Kernel
from keras_lowrank.convert.registry import PLAIN
from keras_lowrank.keras_internals import own_variables
from keras_lowrank.reporting.compression import counted_weights


class Converted(NamedTuple):
    """A kernel that was converted: its matrix is `n x m`, and has `rank` directions left.

    The rank of a Tucker-2 kernel is `{"input": p, "output": q}`, and its matrix `(kh kw c, f)`.
    """

    n: int
    m: int
    rank: Any

    def __str__(self) -> str:
        sides = self.rank.values() if isinstance(self.rank, dict) else [self.rank]
        return f"{self.n} x {self.m}, rank {' and '.join(map(str, sides))}"


class Left(NamedTuple):
    """What stays whole: how many weights, and why."""

    weights: int
    reason: str


class Conversion(NamedTuple):
    """The report of a conversion. Weights are counted as in `Compression`, without biases.

    Attributes:
        converted: dict from the paths of kernels to `(n, m, rank)`.
        skipped: dict from the paths of all other weights to `(weights, reason)`.
        before: int, the weights of the model before.
        after: int, the weights after, `r (n + m)` for a matrix that was converted.

    `print` shows it as a table.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="hidden")])
    >>> print(make_low_rank(model, rank=2))
    hidden: 8 x 8, rank 2
    64 weights, 100.0% converted; now 32
    """

    converted: dict[str, Converted]
    skipped: dict[str, Left]
    before: int
    after: int

    @property
    def share(self) -> float:
        """The share of the weights that was converted: 1.0 for all of them."""
        return sum(one.n * one.m for one in self.converted.values()) / self.before

    def __str__(self) -> str:
        lines = [f"{path}: {one}" for path, one in self.converted.items()]
        lines += [f"{path}: {one.weights:,} as they are. {one.reason}" for path, one in self.left()]
        lines.append(f"{self.before:,} weights, {self.share:.1%} converted; now {self.after:,}")
        return "\n".join(lines)

    def left(self) -> list[tuple[str, Left]]:
        """Returns the items of `skipped`, the largest first."""
        return sorted(self.skipped.items(), key=lambda item: -item[1].weights)


def weights_left(
    model: keras.Model,
    layers: dict[str, keras.layers.Layer],
    kernels: dict[str, Kernel],
    reasons: dict[str, str | None],
) -> dict[str, Left]:
    """Returns `{path: Left}` of the weights of a model that are not to be converted.

    Args:
        model: built `keras.Model`, before it is converted.
        layers: `{path: layer}`, all that are in it.
        kernels: `{path: Kernel}`, all that could be converted.
        reasons: `{path: str}`, why one is not, or None.
    """
    counted = {id(variable) for variable in counted_weights(model)}
    paths = {id(kernel.variable): path for path, kernel in kernels.items()}
    found: dict[str, Left] = {}
    for path, layer in {"": model, **layers}.items():
        for variable in own_variables(layer):
            if id(variable) in counted:
                own = paths.get(id(variable))
                reason = _of_class(layer) if own is None else reasons[own]
                own = own or f"{path}/{variable.name}".lstrip("/")
                if reason is not None and own not in found:
                    found[own] = Left(math.prod(variable.shape), reason)
    return found


def _of_class(layer: keras.layers.Layer) -> str:
    plain = next((cls for cls in type(layer).__mro__[1:] if cls in PLAIN), None)
    if plain is not None:
        return f"{type(layer).__name__}, a subclass of {plain.__name__}, may compute anything."
    return f"There is no low-rank layer for the class {type(layer).__name__}."
