"""The converters of layers with one kernel and a bias; two of them can multiply with `U S V^T`."""

import math
import string
from typing import Any

import keras
import numpy as np

from keras_lowrank import layers
from keras_lowrank.convert.building import build_like, input_shape
from keras_lowrank.convert.converter import (
    Converter,
    Kernel,
    copy_bias,
    in_float64,
    undecorated_class,
)
from keras_lowrank.convert.forms import Form, TuckerForm
from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.layers.einsum_equation import EinsumEquation
from keras_lowrank.layers.initial_factors import GivenFactors

# Arguments that act on the outputs: of two layers, the second has them.
_ON_OUTPUTS = ("activation", "activity_regularizer", "bias_regularizer", "bias_constraint")

# The arguments that a second layer of another class takes too.
_OF_EVERY_LAYER = ("trainable", "dtype", "activity_regularizer")

_POINTWISE = {"kernel_size": 1, "strides": 1, "padding": "valid", "dilation_rate": 1}


class SingleKernelConverter(Converter):
    """Base of the converters of layers with one kernel.

    Factored, the layer becomes two Keras layers with the kernels `U S^{1/2}` and `S^{1/2} V^T`. A
    subclass implements `two_layers`.

    Attributes:
        kernel_name: str, the name of the kernel in Keras.
        second_class: the class of the second of two layers; None for that of the first.
    """

    kernel_name: str = "kernel"
    second_class: Any = None

    def two_layers(self, layer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the arguments of each of two Keras layers that differ from the layer's."""
        # Abstract: each layer type has its own.
        raise NotImplementedError(f"{type(self).__name__} must implement `two_layers`.")

    def kernels(self, path: str, layer: keras.layers.Layer) -> dict[str, Any]:
        return super().kernels(path, layer) or {path: Kernel(self, layer, self.kernel_name)}

    def can_be_factored(self, layer: keras.layers.Layer) -> bool:
        return True

    def to_low_rank(
        self, path: str, layer: keras.layers.Layer, factors: dict[str, Any]
    ) -> keras.layers.Layer:
        given = factors[path]
        low_rank = self.with_rank(layer, max(given[1].shape[-2:]))
        # In place of factors that would be drawn and thrown away.
        drawn, low_rank.kernel_initializer = low_rank.kernel_initializer, GivenFactors(given)
        build_like(low_rank, layer)
        low_rank.kernel_initializer = drawn
        copy_bias(layer, low_rank)
        return low_rank

    def to_plain(self, layer: keras.layers.Layer, style: str) -> keras.layers.Layer:
        return self._factored(layer) if style == "factored" else super().to_plain(layer, style)

    def second_matricization(self, layer: Any, second: keras.layers.Layer) -> Matricization:
        """Returns how the kernel of the second of two layers is the matrix `S^{1/2} V^T`."""
        return self.matricization(second, second.kernel.shape)

    def _factored(self, layer: Any) -> keras.Sequential:
        arguments = self.plain_arguments(layer)
        linear: dict[str, Any] = {name: None for name in _ON_OUTPUTS if name in arguments}
        linear[f"{self.kernel_name}_regularizer"] = None
        behind = {**arguments, "kernel_regularizer": None}
        if self.second_class is not None:
            behind = {name: one for name, one in behind.items() if name in _OF_EVERY_LAYER}
        plain, name = self.plain_class(layer), layer.name
        of_first, of_second = self.two_layers(layer)
        first = plain.from_config({**arguments, **linear, **of_first, "name": f"{name}_left"})
        plain = self.second_class or plain
        second = plain.from_config({**behind, **of_second, "name": f"{name}_right"})
        shape: Any = input_shape(layer)
        build_like(first, layer, {"input_shape": shape}, inside=(name,))
        shape = first.compute_output_shape(shape or (None,))
        build_like(second, layer, {"input_shape": shape}, inside=(name,))
        left, right = _balanced(layer)
        kernel = Kernel(self, first, self.kernel_name)
        kernel.variable.assign(kernel.matricization.kernel(left))
        second.kernel.assign(self.second_matricization(layer, second).kernel(right))
        copy_bias(layer, second)
        return keras.Sequential([first, second], name=name)


class DenseConverter(SingleKernelConverter):
    """Factored, both layers are `Dense`."""

    classes = ((keras.layers.Dense, layers.LowRankDense),)

    def two_layers(self, layer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"units": layer.factors.rank, "use_bias": False}, {}


class ConvConverter(SingleKernelConverter):
    """Factored, the second layer is a 1x1 convolution; in the spatial form, one along the width.

    Args:
        factorization: str, the form that plain layers get.
    """

    classes = (
        (keras.layers.Conv1D, layers.LowRankConv1D),
        (keras.layers.Conv2D, layers.LowRankConv2D),
        (keras.layers.Conv3D, layers.LowRankConv3D),
    )
    low_rank_arguments = (*SingleKernelConverter.low_rank_arguments, "factorization")

    def __init__(self, factorization: str = "matrix") -> None:
        self._factorization = factorization

    def in_form(self, layer: keras.layers.Layer, factorization: str) -> Converter:
        low_rank: Any = dict(self.classes).get(undecorated_class(layer), layers.LowRankConv1D)
        return ConvConverter(factorization) if factorization in low_rank.factorizations else self

    def form(self, layer: keras.layers.Layer, shape: tuple[int, ...]) -> Form:
        if self._factorization == "tucker":
            *window, n, m = shape
            return TuckerForm(math.prod(window), n, m)
        return super().form(layer, shape)

    def matricization(self, layer: keras.layers.Layer, shape: tuple[int, ...]) -> Matricization:
        if self._factorization == "spatial":
            return layers.LowRankConv2D.spatial_matricization(shape)
        return super().matricization(layer, shape)

    def with_rank(self, layer: keras.layers.Layer, rank: Any, **others: Any) -> keras.layers.Layer:
        if self._factorization != "matrix":
            others = {"factorization": self._factorization, **others}
        return super().with_rank(layer, rank, **others)

    def can_be_factored(self, layer: keras.layers.Layer) -> bool:
        return getattr(layer, "factorization", "matrix") != "tucker"

    def two_layers(self, layer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        first = {"filters": layer.factors.rank, "use_bias": False}
        if not _is_spatial(layer):
            return first, _POINTWISE
        second: dict[str, Any] = {}
        for name in ("kernel_size", "strides", "dilation_rate"):
            along_height, along_width = getattr(layer, name)
            first[name], second[name] = (along_height, 1), (1, along_width)
        return first, second

    def second_matricization(self, layer: Any, second: keras.layers.Layer) -> Matricization:
        if not _is_spatial(layer):
            return super().second_matricization(layer, second)
        return Matricization(tuple(second.kernel.shape), rows=(2,), columns=(0, 1, 3))


class Conv2DTransposeConverter(SingleKernelConverter):
    """Factored, the second layer is a 1x1 convolution."""

    classes = ((keras.layers.Conv2DTranspose, layers.LowRankConv2DTranspose),)

    def two_layers(self, layer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        first = {"filters": layer.factors.rank, "use_bias": False}
        return first, {**_POINTWISE, "output_padding": None}

    def matricization(self, layer: keras.layers.Layer, shape: tuple[int, ...]) -> Matricization:
        return layers.LowRankConv2DTranspose.matricization_of(shape)

    def arguments(self, layer: keras.layers.Layer) -> dict[str, Any]:
        # Older versions of Keras leave it out of the config.
        return {**super().arguments(layer), "output_padding": layer.output_padding}


class EinsumDenseConverter(SingleKernelConverter):
    """Factored, the outputs of the first layer have a last axis for the rank."""

    classes = ((keras.layers.EinsumDense, layers.LowRankEinsumDense),)

    def matricization(self, layer: keras.layers.Layer, shape: tuple[int, ...]) -> Matricization:
        return EinsumEquation.parse(layer.equation).matricization(shape)

    def two_layers(self, layer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        shape: Any = input_shape(layer)
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


DENSE, EINSUM_DENSE = DenseConverter(), EinsumDenseConverter()


def _is_spatial(layer: keras.layers.Layer) -> bool:
    return getattr(layer, "factorization", "matrix") == "spatial"


def _balanced(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns `U S^{1/2}` and `S^{1/2} V^T` in float64, after making S diagonal."""
    u, s, v = in_float64(layer)
    inner, values, outer = np.linalg.svd(s)
    root = np.sqrt(values)
    return u @ inner * root, root[:, None] * (outer @ v.T)
