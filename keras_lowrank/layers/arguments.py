"""Arguments of low-rank layers: their types, their checks, and those that are refused."""

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras

from keras_lowrank.layers.kernel_penalty import Conditioning
from keras_lowrank.ranks.truncation import Truncation

# What Keras accepts for each: a name, a config or the object itself.
Activation: TypeAlias = str | dict[str, Any] | Callable[[Any], Any] | None
Initializer: TypeAlias = str | dict[str, Any] | Callable[..., Any]
Regularizer: TypeAlias = str | dict[str, Any] | keras.regularizers.Regularizer | None
Constraint: TypeAlias = str | dict[str, Any] | Callable[[Any], Any] | None

# The forms of the kernel of a convolution: see `LowRankConv2D`.
FACTORIZATIONS = ("matrix", "spatial", "tucker")

# With the batch first; None is unknown.
Shape: TypeAlias = tuple[int | None, ...]

# A tolerance, a rule or its config; None for the model's.
TruncationLike: TypeAlias = float | Truncation | dict[str, Any] | None


def check_ranks(rank: Any, min_rank: Any, max_rank: Any) -> tuple[int | None, int, int | None]:
    """Returns the three as int or None.

    Raises:
        ValueError: not a positive integer, or not `min_rank <= rank <= max_rank`.
    """
    rank = rank if rank is None else positive_integer("rank", rank)
    min_rank = positive_integer("min_rank", min_rank)
    max_rank = max_rank if max_rank is None else positive_integer("max_rank", max_rank)
    low = min_rank if rank is None else rank
    if min_rank > low or (max_rank is not None and low > max_rank):
        raise ValueError(
            "The ranks must satisfy min_rank <= rank <= max_rank. "
            f"Received: rank={rank}, min_rank={min_rank}, max_rank={max_rank}"
        )
    return rank, min_rank, max_rank


def positive_integer(name: str, value: Any) -> int:
    """Returns an argument of any integer type as int.

    Raises:
        ValueError: not a positive integer.
    """
    try:
        if not isinstance(value, bool) and operator.index(value) > 0:
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


def check_factorization(name: Any, known: Sequence[str] = FACTORIZATIONS) -> str:
    """Returns the name of a form of the kernels of convolutions.

    Args:
        name: str.
        known: names of the forms that there are.

    Raises:
        ValueError: another name.
    """
    if name not in known:
        names = " or ".join(", ".join(map(repr, known)).rsplit(", ", 1))
        raise ValueError(f"`factorization` must be {names}. Received: factorization={name!r}")
    return name


def by_name(keras_layer: type, named: int, args: tuple) -> dict[str, Any]:
    """Returns further positional arguments of a Keras layer under their names in Keras.

    Args:
        keras_layer: class of Keras.
        named: int, how many positional arguments the low-rank layer has itself.
        args: tuple, the positional arguments after those.
    """
    names = list(inspect.signature(keras_layer).parameters)[named:]
    names = [name for name in names if name != "kwargs"]
    if len(args) > len(names):
        raise TypeError(
            f"`{keras_layer.__name__}` takes at most {named + len(names)} positional arguments. "
            f"Received: {named + len(args)}"
        )
    return dict(zip(names, args))


NO_LORA = "the layer is low-rank already; set `rank`"
QUANTIZE = "quantize the exported file instead"


def refuse(value: Any, name: str, reason: str) -> None:
    """Raises ValueError, with the reason, where an argument that must be None is not."""
    if value is not None:
        raise ValueError(f"`{name}` must be None in a low-rank layer: {reason}. Received: {value}")


def check_regularizer(
    regularizer: keras.regularizers.Regularizer | None, name: str = "kernel_regularizer"
) -> keras.regularizers.Regularizer | None:
    """Returns a regularizer that a low-rank layer can compute: L2, `Conditioning` or None.

    Raises:
        ValueError: another regularizer.
    """
    kinds = (keras.regularizers.L2, keras.regularizers.L1L2, Conditioning)
    if regularizer is None or (
        isinstance(regularizer, kinds) and float(getattr(regularizer, "l1", 0.0)) == 0.0
    ):
        return regularizer
    raise ValueError(
        f"`{name}` must be L2 or `keras_lowrank.Conditioning`, which a layer computes from its "
        "factors. Other penalties need the entries of the kernel, which is never formed. "
        f"Received: {name}={regularizer}"
    )
