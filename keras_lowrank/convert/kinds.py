"""Which Keras layer is which low-rank layer: the one table that conversion reads, both ways."""

import string
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from keras_lowrank.convert.graph import copied_activation, input_shape
from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.layers import (
    LowRankConv1D,
    LowRankConv2D,
    LowRankConv2DTranspose,
    LowRankConv3D,
    LowRankDense,
    LowRankEinsumDense,
    LowRankEmbedding,
    LowRankGroupQueryAttention,
    LowRankGRU,
    LowRankLSTM,
    LowRankMultiHeadAttention,
)
from keras_lowrank.layers.attention import projections
from keras_lowrank.layers.einsum_equation import EinsumEquation


class Kind(NamedTuple):
    """One pair of layer types whose other arguments have the same names.

    Attributes:
        plain: the Keras layer class.
        low_rank: the `LowRankLayer` class.
        pair: callable from a low-rank layer to two dicts. A plain layer without an activation, with
            the arguments in the first, and one behind it with those in the second, multiply with
            `A B^T`.
        kernel: str, what Keras calls the kernel.
        behind: the class of that second layer, or None for the same one. Another class takes only
            the arguments that every layer has.
    """

    plain: type
    low_rank: type
    pair: Callable
    kernel: str = "kernel"
    behind: type | None = None


def _by_width(name, **second):
    """For a class with an argument that is the number of outputs."""
    return lambda layer: ({name: layer.factors.rank, "use_bias": False}, second)


def _by_table(layer):
    return {"output_dim": layer.factors.rank}, {"units": layer.output_dim, "use_bias": False}


def _by_equation(layer):
    shape = input_shape(layer)
    axes = EinsumEquation.parse(layer.equation).expanded(len(shape))
    rank = next(a for a in string.ascii_letters if a not in axes.inputs + axes.outputs)
    free, rows, columns = map("".join, (axes.free, axes.rows, axes.columns))
    extents = dict(zip(axes.inputs, shape))
    first = {
        "equation": f"{axes.inputs},{rows}{rank}->{free}{rank}",
        "output_shape": (*(extents[axis] for axis in free[1:]), layer.factors.rank),
        "bias_axes": None,
    }
    second = {
        "equation": f"{free}{rank},{rank}{columns}->{axes.outputs}",
        "output_shape": layer.compute_output_shape(shape)[1:],
    }
    return first, second


_POINTWISE = {"kernel_size": 1, "strides": 1, "padding": "valid", "dilation_rate": 1}


def _by_factorization(layer):
    if layer.factorization == "matrix":
        return _by_width("filters", **_POINTWISE)(layer)
    window = {name: getattr(layer, name) for name in ("kernel_size", "strides", "dilation_rate")}
    first = {name: (along_height, 1) for name, (along_height, _) in window.items()}
    second = {name: (1, along_width) for name, (_, along_width) in window.items()}
    return {"filters": layer.factors.rank, "use_bias": False, **first}, second


KINDS = [
    Kind(keras.layers.Dense, LowRankDense, _by_width("units")),
    Kind(keras.layers.Conv1D, LowRankConv1D, _by_width("filters", **_POINTWISE)),
    Kind(keras.layers.Conv2D, LowRankConv2D, _by_factorization),
    Kind(keras.layers.Conv3D, LowRankConv3D, _by_width("filters", **_POINTWISE)),
    Kind(
        keras.layers.Conv2DTranspose,
        LowRankConv2DTranspose,
        _by_width("filters", **_POINTWISE, output_padding=None),
    ),
    Kind(keras.layers.EinsumDense, LowRankEinsumDense, _by_equation),
    Kind(
        keras.layers.Embedding,
        LowRankEmbedding,
        _by_table,
        kernel="embeddings",
        behind=keras.layers.Dense,
    ),
]

# Layers that hold kernels in layers of their own, the projections.
ATTENTION = {
    keras.layers.MultiHeadAttention: LowRankMultiHeadAttention,
    keras.layers.GroupQueryAttention: LowRankGroupQueryAttention,
}

# Layers whose cell holds two kernels, each of all gates.
GATED = {keras.layers.LSTM: LowRankLSTM, keras.layers.GRU: LowRankGRU}


class GatesKernel(NamedTuple):
    """One of the two kernels of an LSTM or a GRU: what a layer is elsewhere.

    Attributes:
        owner: the Keras layer.
        name: str, what Keras calls the kernel.
    """

    owner: keras.layers.Layer
    name: str

    @property
    def kernel(self):
        return getattr(self.owner.cell, self.name)


# A subclass of a Keras layer may compute anything: the very class is asked for.
_LOW_RANK = {**{kind.plain: kind.low_rank for kind in KINDS}, **ATTENTION, **GATED}
_BY_PLAIN = {kind.plain: kind for kind in KINDS}
_BY_LOW_RANK = {kind.low_rank: kind for kind in KINDS}


def kind_of(layer):
    """The `Kind` of a layer, plain or low-rank, or None."""
    return _BY_PLAIN.get(type(layer)) or _BY_LOW_RANK.get(type(layer))


def is_attention(layer):
    """bool, whether the kernels of `layer` are those of its projections."""
    return type(layer) in ATTENTION or type(layer) in ATTENTION.values()


def is_gated(layer):
    """bool, whether the kernels of `layer` are those of the gates in its cell."""
    return type(layer) in GATED or type(layer) in GATED.values()


def directions(layer):
    """The two layers that a `Bidirectional` runs; none for every other layer."""
    if type(layer) is not keras.layers.Bidirectional:
        return []
    return [layer.forward_layer, layer.backward_layer]


def has_several_kernels(layer):
    """bool, whether `layer` has its kernels in what it holds, each under a path of its own."""
    return is_attention(layer) or is_gated(layer) or any(map(is_gated, directions(layer)))


def is_convertible(layer):
    """bool, whether there is a low-rank layer for the class of `layer`."""
    inside = directions(layer)
    return type(layer) in _LOW_RANK or (bool(inside) and all(map(is_convertible, inside)))


def is_plain(cls):
    """bool, whether `cls` is a Keras class with a low-rank one."""
    return cls in _LOW_RANK


def holds_matrix(layer):
    """bool, whether `layer` is a plain one whose kernel is a matrix."""
    if type(layer) not in _BY_PLAIN and not isinstance(layer, GatesKernel):
        return False
    try:
        matricization(layer)
    except ValueError:
        return False
    return True


def kernel_layers(path, layer):
    """`{path: layer}` of what holds the kernels of a layer: itself, or what is inside it.

    Of a plain LSTM or GRU, whose cell is no layer of that kind, the values are `GatesKernel`s.
    """
    if not has_several_kernels(layer):
        return {path: layer}
    if is_attention(layer):
        return {f"{path}/{name}": one for name, one in projections(layer).items()}
    if directions(layer):
        gated = {f"{path}/{one.name}": one for one in directions(layer) if is_gated(one)}
        return {key: one for inside in gated.items() for key, one in kernel_layers(*inside).items()}
    if type(layer) in GATED:
        inside = [GatesKernel(layer, name) for name in ("kernel", "recurrent_kernel")]
    else:
        inside = [*layer.cell.kernels, *layer.cell.recurrent_kernels]
    return {f"{path}/{layer.cell.name}/{one.name}": one for one in inside}


def kernel_of(layer):
    """The variable that holds the kernel of a plain layer."""
    if isinstance(layer, GatesKernel):
        return layer.kernel
    return getattr(layer, kind_of(layer).kernel)


def matricization(layer):
    """How the kernel of a plain layer is a matrix.

    Raises:
        ValueError: the kernel of an `EinsumDense` that is none.
    """
    if type(layer) is keras.layers.EinsumDense:
        return EinsumEquation.parse(layer.equation).matricization(kernel_of(layer).shape)
    if type(layer) is keras.layers.Conv2DTranspose:
        return LowRankConv2DTranspose.matricization_of(layer.kernel.shape)
    return Matricization.of_last_axis(kernel_of(layer).shape)


def kernel_matrix(layer):
    """The kernel as an array of shape `(n, m)`, in float32 or float64."""
    kernel = kernel_of(layer)
    dtype = "float64" if kernel.dtype == "float64" else "float32"
    kernel = keras.ops.cast(kernel, dtype)
    return np.asarray(matricization(layer).matrix(kernel))  # a view where nothing is cast


def unbuilt_twin(layer, rank):
    """A low-rank layer with the arguments of a plain one.

    Args:
        layer: Keras layer that can be converted, and is no `Bidirectional`.
        rank: int, or by kernel where it has several: a dict of the low-rank ones.

    Raises:
        ValueError: an argument has no meaning without the kernel (a constraint, an L1 penalty,
            groups): the words of the low-rank layer.
    """
    if getattr(layer, "quantization_mode", None):
        raise ValueError(
            "A quantized layer has no kernel of floats to decompose; convert before quantizing. "
            f"Received: quantization_mode={layer.quantization_mode!r}"
        )
    config = _config(layer)
    for name in ("lora_rank", "lora_alpha"):  # what LoRA has learned is in the kernel that is read
        config.pop(name, None)
    return _LOW_RANK[type(layer)](**config, rank=rank)


def plain_arguments(layer):
    """The arguments of the Keras layer that a low-rank layer stands for."""
    own = {"rank", "min_rank", "max_rank", "truncation"}  # of every layer
    own |= {"factorization", "stacked", "reverse_dtype", "logit_soft_cap"}
    return {key: value for key, value in _config(layer).items() if key not in own}


def second_arguments(layer):
    """Those that the second of the two Keras layers that multiply with `A B^T` starts from."""
    arguments = plain_arguments(layer)
    if kind_of(layer).behind is None:
        return arguments
    common = ("trainable", "dtype", "activity_regularizer")
    return {key: arguments[key] for key in common if key in arguments}


def _config(layer):
    config = layer.get_config()
    for name in {"activation", "recurrent_activation"} & set(config):
        # Not from the config: a function without a name does not come back from it.
        config[name] = copied_activation(getattr(layer, name))
    if hasattr(layer, "output_padding"):  # older versions of Keras leave it out of the config
        config["output_padding"] = layer.output_padding
    return config
