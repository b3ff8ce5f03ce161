"""Conversion of `EinsumDense`."""

import string

import keras

from keras_lowrank.convert.building import input_shape
from keras_lowrank.convert.single_kernel import SingleKernelConverter
from keras_lowrank.layers import LowRankEinsumDense
from keras_lowrank.layers.einsum_equation import EinsumEquation


class EinsumDenseConverter(SingleKernelConverter):
    """Factored, an axis for the rank is the last of what the first layer puts out."""

    classes = ((keras.layers.EinsumDense, LowRankEinsumDense),)

    def matricization(self, layer, shape):
        return EinsumEquation.parse(layer.equation).matricization(shape)

    def two_layers(self, layer):
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


EINSUM_DENSE = EinsumDenseConverter()
