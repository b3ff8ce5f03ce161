"""Which Keras layer is which low-rank layer: the one table that conversion reads, both ways."""

from typing import NamedTuple

import keras
import numpy as np

from keras_lowrank.layers import LowRankConv2D, LowRankDense, LowRankEmbedding


class Kind(NamedTuple):
    """One pair of layer types whose other arguments have the same names.

    Attributes:
        plain: the Keras layer class.
        low_rank: the `LowRankLayer` class.
        width: str, the argument that holds the number of outputs.
        second: dict. A plain layer with r outputs, and one of the same class with these arguments
            behind it, multiply with `A B^T`.
        kernel: str, what Keras calls the kernel.
        behind: the class of that second layer, or None for the same one. Another class takes the
            arguments that both have, and the number of outputs as its `units`.
    """

    plain: type
    low_rank: type
    width: str
    second: dict
    kernel: str = "kernel"
    behind: type | None = None


_POINTWISE = {"kernel_size": 1, "strides": 1, "padding": "valid", "dilation_rate": 1}

KINDS = [
    Kind(keras.layers.Dense, LowRankDense, "units", {}),
    Kind(keras.layers.Conv2D, LowRankConv2D, "filters", _POINTWISE),
    Kind(
        keras.layers.Embedding,
        LowRankEmbedding,
        "output_dim",
        {"use_bias": False},
        kernel="embeddings",
        behind=keras.layers.Dense,
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


def kernel_matrix(layer):
    """The kernel as an array of shape `(n, m)`, in float32 or float64."""
    kernel = getattr(layer, kind_of(layer).kernel)
    dtype = "float64" if kernel.dtype == "float64" else "float32"
    kernel = np.asarray(keras.ops.cast(kernel, dtype))  # a view where nothing is cast
    return kernel.reshape(-1, kernel.shape[-1])


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
    return kind_of(layer).low_rank(**_config(layer), rank=rank)


def plain_arguments(layer):
    """The arguments of the Keras layer that a low-rank layer stands for."""
    own = {"rank", "min_rank", "max_rank", "truncation"}  # of every layer
    own |= {"stacked", "reverse_dtype", "logit_soft_cap"}
    return {key: value for key, value in _config(layer).items() if key not in own}


def second_arguments(layer):
    """The arguments of the second of the two Keras layers that multiply with `A B^T`."""
    kind, arguments = kind_of(layer), plain_arguments(layer)
    if kind.behind is not None:
        common = ("trainable", "dtype", "activity_regularizer")
        arguments = {
            "units": arguments[kind.width],
            **{key: arguments[key] for key in common if key in arguments},
        }
    return {**arguments, **kind.second}


def _config(layer):
    config = layer.get_config()
    if "activation" in config:
        # Itself: a function without a name does not come back from a config.
        config["activation"] = layer.activation
    return config
