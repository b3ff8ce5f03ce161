"""Conversion of convolutions."""

import keras

from keras_lowrank.convert.single_kernel import SingleKernelConverter
from keras_lowrank.kernels.matricization import Matricization
from keras_lowrank.layers import (
    LowRankConv1D,
    LowRankConv2D,
    LowRankConv2DTranspose,
    LowRankConv3D,
)

_POINTWISE = {"kernel_size": 1, "strides": 1, "padding": "valid", "dilation_rate": 1}


class ConvConverter(SingleKernelConverter):
    """Factored, the second layer is a 1x1 convolution, or the one along the width."""

    classes = (
        (keras.layers.Conv1D, LowRankConv1D),
        (keras.layers.Conv2D, LowRankConv2D),
        (keras.layers.Conv3D, LowRankConv3D),
    )
    low_rank_arguments = (*SingleKernelConverter.low_rank_arguments, "factorization")

    def two_layers(self, layer):
        first = {"filters": layer.factors.rank, "use_bias": False}
        if not _is_spatial(layer):
            return first, _POINTWISE
        second = {}
        for name in ("kernel_size", "strides", "dilation_rate"):
            along_height, along_width = getattr(layer, name)
            first[name], second[name] = (along_height, 1), (1, along_width)
        return first, second

    def second_matricization(self, layer, second):
        if not _is_spatial(layer):
            return super().second_matricization(layer, second)
        return Matricization(tuple(second.kernel.shape), rows=(2,), columns=(0, 1, 3))


class Conv2DTransposeConverter(SingleKernelConverter):
    """Factored, the second layer is a 1x1 convolution."""

    classes = ((keras.layers.Conv2DTranspose, LowRankConv2DTranspose),)

    def two_layers(self, layer):
        first = {"filters": layer.factors.rank, "use_bias": False}
        return first, {**_POINTWISE, "output_padding": None}

    def matricization(self, layer, shape):
        return LowRankConv2DTranspose.matricization_of(shape)

    def arguments(self, layer):
        # Older versions of Keras leave it out of the config.
        return {**super().arguments(layer), "output_padding": layer.output_padding}


def _is_spatial(layer):
    return getattr(layer, "factorization", "matrix") == "spatial"
