"""The converter of attention, whose kernels are those of its projections."""

from typing import Any

import keras

from keras_lowrank import keras_internals, layers
from keras_lowrank.convert.building import copy_own_state
from keras_lowrank.convert.converter import Converter, copy_bias
from keras_lowrank.convert.single_kernel import EINSUM_DENSE
from keras_lowrank.layers.attention import projections


class AttentionConverter(Converter):
    """Projections are always merged: Keras's layer has one `EinsumDense` for each."""

    classes = (
        (keras.layers.MultiHeadAttention, layers.LowRankMultiHeadAttention),
        (keras.layers.GroupQueryAttention, layers.LowRankGroupQueryAttention),
    )

    def kernels(self, path: str, layer: keras.layers.Layer) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, one in projections(layer).items():
            found.update(EINSUM_DENSE.kernels(f"{path}/{name}", one))
        return found

    def copy_rest(self, source: keras.layers.Layer, target: keras.layers.Layer) -> None:
        parts = map(keras_internals.all_layers, (source, target))
        for one, other in zip(*parts, strict=True):
            if type(one) is type(other):
                copy_own_state(one, other)
            else:
                copy_bias(one, other)
