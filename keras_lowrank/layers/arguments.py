"""Arguments of low-rank layers: checked, refused with a reason, or found by their position."""

import inspect
import operator

import keras

from keras_lowrank.layers.kernel_penalty import Conditioning


def check_ranks(rank, min_rank, max_rank):
    """Returns the three as int, or None; raises ValueError where they are not in order."""
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


def positive_integer(name, value):
    """Returns an argument as int, whatever kind of integer it is; raises ValueError on another."""
    try:
        if not isinstance(value, bool) and operator.index(value) > 0:
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


def by_name(keras_layer, named, args):
    """Positional arguments behind the first `named`, by the names that Keras has in their places.

    Args:
        keras_layer: class of Keras.
        named: int, how many arguments before them a low-rank layer names itself.
        args: tuple.
    """
    names = list(inspect.signature(keras_layer.__init__).parameters)[1 + named :]
    names = [name for name in names if name != "kwargs"]
    if len(args) > len(names):
        raise TypeError(
            f"`{keras_layer.__name__}` takes at most {named + len(names)} positional arguments. "
            f"Received: {named + len(args)}"
        )
    return dict(zip(names, args))


NO_LORA = "the layer is low-rank already; set `rank`"
QUANTIZE = "quantize the exported file instead"


def refuse(value, name, reason):
    """Raises ValueError, with the reason, where an argument that must be None is not."""
    if value is not None:
        raise ValueError(f"`{name}` must be None in a low-rank layer: {reason}. Received: {value}")


def check_regularizer(regularizer, name="kernel_regularizer"):
    """Returns a regularizer that a low-rank layer can compute; raises ValueError on another."""
    kinds = (keras.regularizers.L2, keras.regularizers.L1L2, Conditioning)
    if regularizer is None or (
        isinstance(regularizer, kinds) and float(getattr(regularizer, "l1", 0.0)) == 0.0
    ):
        return regularizer
    raise ValueError(
        f"`{name}` must be L2 or `keras_lowrank.Conditioning`, functions of the singular values, "
        "which a low-rank layer has without forming its kernel; a sum over the entries of the "
        f"kernel cannot be had without forming it. Received: {name}={regularizer}"
    )
