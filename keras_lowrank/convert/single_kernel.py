"""Conversion of layers with one kernel and a bias, two of which multiply with `U S V^T`."""

import keras
import numpy as np

from keras_lowrank.convert.building import build_like, input_shape
from keras_lowrank.convert.converter import Converter, Kernel, copy_bias, in_float64
from keras_lowrank.layers import LowRankDense
from keras_lowrank.layers.initial_factors import GivenFactors

# What acts on outputs: on those of the second of two layers.
_ON_OUTPUTS = ("activation", "activity_regularizer", "bias_regularizer", "bias_constraint")


class SingleKernelConverter(Converter):
    """How a layer with one kernel is converted.

    Factored, it is two Keras layers with the kernels `U S^{1/2}` and `S^{1/2} V^T`. A subclass
    implements `two_layers`, which says how they differ from the merged one.

    Attributes:
        kernel_name: str, what Keras calls the kernel.
        second_class: the class of the second of two layers; None for that of the first.
    """

    kernel_name = "kernel"
    second_class = None

    def two_layers(self, layer):
        """Two dicts: the arguments of two Keras layers, where they are others than the layer's."""
        raise NotImplementedError(f"{type(self).__name__} must implement `two_layers`.")

    def kernels(self, path, layer):
        return super().kernels(path, layer) or {path: Kernel(self, layer, self.kernel_name)}

    def can_be_factored(self, layer):
        return True

    def to_low_rank(self, path, layer, factors):
        given = factors[path]
        low_rank = self.with_rank(layer, given[1].shape[0])
        # In the place of factors that would be drawn, and thrown away.
        drawn, low_rank.kernel_initializer = low_rank.kernel_initializer, GivenFactors(given)
        build_like(low_rank, layer)
        low_rank.kernel_initializer = drawn
        copy_bias(layer, low_rank)
        return low_rank

    def to_plain(self, layer, style):
        return self._factored(layer) if style == "factored" else super().to_plain(layer, style)

    def second_arguments(self, arguments):
        """Those of the arguments of the Keras layer that the second of two layers starts from."""
        return arguments

    def second_matricization(self, layer, second):
        """How the kernel of the second of two layers is the matrix `S^{1/2} V^T`."""
        return self.matricization(second, second.kernel.shape)

    def _factored(self, layer):
        arguments = self.plain_arguments(layer)
        linear = {name: None for name in _ON_OUTPUTS if name in arguments}
        linear[f"{self.kernel_name}_regularizer"] = None
        behind = {**self.second_arguments(arguments), "kernel_regularizer": None}
        (left, right), plain, name = self.two_layers(layer), self.plain_class(layer), layer.name
        first = plain.from_config({**arguments, **linear, **left, "name": f"{name}_left"})
        plain = self.second_class or plain
        second = plain.from_config({**behind, **right, "name": f"{name}_right"})
        shape = input_shape(layer)
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

    classes = ((keras.layers.Dense, LowRankDense),)

    def two_layers(self, layer):
        return {"units": layer.factors.rank, "use_bias": False}, {}


DENSE = DenseConverter()


def _balanced(layer):
    """`U S^{1/2}` and `S^{1/2} V^T` in float64, S made diagonal."""
    u, s, v = in_float64(layer)
    inner, values, outer = np.linalg.svd(s)
    root = np.sqrt(values)
    return u @ inner * root, root[:, None] * (outer @ v.T)
