"""Which Keras layer is which low-rank layer: the one table that conversion reads, both ways."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from keras_lowrank.layers import (
    LowRankConv1D,
    LowRankConv2D,
    LowRankConv2DTranspose,
    LowRankConv3D,
    LowRankDense,
)
from keras_lowrank.layers.matricization import Matricization


class Kind(NamedTuple):
    """One pair of layer types whose other arguments have the same names.

    Attributes:
        plain: the Keras layer class.
        low_rank: the `LowRankLayer` class.
        width: str, the argument that holds the number of outputs.
        second: dict. A plain layer with r outputs, and one of the same class with these arguments
            behind it, multiply with `A B^T`.
        matricization_of: callable from the shape of a kernel to its `Matricization`.
    """

    plain: type
    low_rank: type
    width: str
    second: dict
    matricization_of: Callable = Matricization.of_last_axis


_POINTWISE = {"kernel_size": 1, "strides": 1, "padding": "valid", "dilation_rate": 1}

KINDS = [
    Kind(keras.layers.Dense, LowRankDense, "units", {}),
    Kind(keras.layers.Conv1D, LowRankConv1D, "filters", _POINTWISE),
    Kind(keras.layers.Conv2D, LowRankConv2D, "filters", _POINTWISE),
    Kind(keras.layers.Conv3D, LowRankConv3D, "filters", _POINTWISE),
    Kind(
        keras.layers.Conv2DTranspose,
        LowRankConv2DTranspose,
        "filters",
        {**_POINTWISE, "output_padding": None},
        LowRankConv2DTranspose.matricization_of,
    ),
]

# A subclass of a Keras layer may compute anything: the very class is asked for.
_BY_PLAIN = {kind.plain: kind for kind in KINDS}
_BY_LOW_RANK = {kind.low_rank: kind for kind in KINDS}


def kind_of(layer):
    """The `Kind` of a layer, plain or low-rank, or None."""
    return _BY_PLAIN.get(type(layer)) or _BY_LOW_RANK.get(type(layer))


def is_convertible(layer):
    """bool, whether there is a low-rank layer for the class of `layer`."""
    return type(layer) in _BY_PLAIN


def matricization(layer):
    """How the kernel of a plain layer is a matrix."""
    return kind_of(layer).matricization_of(layer.kernel.shape)


def kernel_matrix(layer):
    """The kernel as an array of shape `(n, m)`, in float32 or float64."""
    dtype = "float64" if layer.kernel.dtype == "float64" else "float32"
    kernel = keras.ops.cast(layer.kernel, dtype)
    return np.asarray(matricization(layer).matrix(kernel))  # a view where nothing was cast


def unbuilt_twin(layer, rank):
    """A low-rank layer with the arguments of a plain one.

    Raises:
        ValueError: an argument has no meaning without the kernel (a constraint, an L1 penalty,
            groups): the words of the low-rank layer.
    """
    if getattr(layer, "quantization_mode", None):
        raise ValueError(
            "A quantized layer has no kernel of floats to decompose; convert before quantizing. "
            f"Received: quantization_mode={layer.quantization_mode!r}"
        )
    # The activation itself: a function without a name does not come back from a config.
    config = {**layer.get_config(), "activation": layer.activation, "rank": rank}
    return kind_of(layer).low_rank(**config)


def plain_arguments(layer):
    """The arguments of the Keras layer that a low-rank layer stands for."""
    own = {"rank", "min_rank", "max_rank", "truncation"}
    config = {key: value for key, value in layer.get_config().items() if key not in own}
    return {**config, "activation": layer.activation}
