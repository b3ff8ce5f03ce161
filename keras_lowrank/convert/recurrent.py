"""The converters of LSTM and GRU, whose cells hold two kernels, and of `Bidirectional` ones."""

from typing import Any

import keras
import numpy as np

from keras_lowrank import layers
from keras_lowrank.convert.converter import Converter, Kernel, copy_bias, joined, merged_kernel
from keras_lowrank.convert.single_kernel import DENSE


class GatedConverter(Converter):
    """The kernels are always merged: Keras's cell has one for all gates.

    In a `Bidirectional`, layers of other classes and layers without factors are copied.
    """

    classes = ((keras.layers.LSTM, layers.LowRankLSTM), (keras.layers.GRU, layers.LowRankGRU))
    low_rank_arguments = (*Converter.low_rank_arguments, "stacked")

    def variable(self, layer: keras.layers.Layer, name: str) -> keras.Variable:
        return getattr(layer.cell, name)

    def kernels(self, path: str, layer: keras.layers.Layer) -> dict[str, Any]:
        if self.is_plain(layer):
            names = ("kernel", "recurrent_kernel")
            return {f"{path}/{layer.cell.name}/{name}": Kernel(self, layer, name) for name in names}
        if not self.is_low_rank(layer):
            return {}
        inside = (*layer.cell.kernels, *layer.cell.recurrent_kernels)
        return joined(DENSE.kernels, f"{path}/{layer.cell.name}", inside)

    def merged(self, kernels: dict[str, Any], path: str) -> np.ndarray:
        # One for all gates, or "kernel_i" and the like for each.
        gates = [one for key, one in kernels.items() if f"{key}_".startswith(f"{path}_")]
        return np.concatenate([merged_kernel(one) for one in gates], axis=-1)

    def copy_rest(self, source: keras.layers.Layer, target: keras.layers.Layer) -> None:
        if type(source) is type(target):
            target.set_weights(source.get_weights())
        else:
            copy_bias(source.cell, target.cell)

    def unbuilt_low_rank(
        self, path: str, layer: keras.layers.Layer, factors: dict[str, Any]
    ) -> keras.layers.Layer:
        if not set(self.kernels(path, layer)) & set(factors):
            return type(layer).from_config(layer.get_config())
        return super().unbuilt_low_rank(path, layer, factors)

    def unbuilt_plain(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        if not self.is_low_rank(layer):
            return type(layer).from_config(layer.get_config())
        return super().unbuilt_plain(layer)


GATED = GatedConverter()


class BidirectionalConverter(Converter):
    """A `Bidirectional` stays one, around two converted layers."""

    classes = ((keras.layers.Bidirectional, keras.layers.Bidirectional),)

    def is_plain(self, layer: keras.layers.Layer) -> bool:
        return all(map(GATED.is_plain, _directions(layer)))

    def is_low_rank(self, layer: keras.layers.Layer) -> bool:
        return any(map(GATED.is_low_rank, _directions(layer)))

    def kernels(self, path: str, layer: keras.layers.Layer) -> dict[str, Any]:
        return joined(GATED.kernels, path, _directions(layer))

    def convertible_kernels(self, path: str, layer: keras.layers.Layer) -> dict[str, Any]:
        return joined(GATED.convertible_kernels, path, _directions(layer))

    def merged(self, kernels: dict[str, Any], path: str) -> np.ndarray:
        return GATED.merged(kernels, path)

    def copy_rest(self, source: keras.layers.Layer, target: keras.layers.Layer) -> None:
        for one, other in zip(_directions(source), _directions(target)):
            GATED.copy_rest(one, other)

    def unbuilt_low_rank(
        self, path: str, layer: keras.layers.Layer, factors: dict[str, Any]
    ) -> keras.layers.Layer:
        names = (f"{path}/{one.name}" for one in _directions(layer))
        both = zip(names, _directions(layer))
        return _around(layer, *(GATED.unbuilt_low_rank(*one, factors) for one in both))

    def unbuilt_plain(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        return _around(layer, *map(GATED.unbuilt_plain, _directions(layer)))


def _directions(layer: keras.layers.Layer) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    return layer.forward_layer, layer.backward_layer


def _around(
    layer: keras.layers.Layer, forward: keras.layers.Layer, backward: keras.layers.Layer
) -> keras.layers.Layer:
    """Returns a `Bidirectional` with the arguments of `layer`, around two other layers."""
    config = layer.get_config()
    config = {key: value for key, value in config.items() if key not in ("layer", "backward_layer")}
    return keras.layers.Bidirectional(forward, backward_layer=backward, **config)
