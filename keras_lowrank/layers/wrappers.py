"""Keras wrappers that would write to the kernel of a low-rank layer."""

import keras

from keras_lowrank import keras_internals
from keras_lowrank.layers.find_layers import find_low_rank_layers
from keras_lowrank.layers.low_rank_layer import LowRankLayer


def refuse_wrappers(model: keras.layers.Layer) -> None:
    """Raises ValueError where a wrapper inside `model` writes to the kernel of a low-rank layer."""
    for layer in keras_internals.all_layers(model):
        if isinstance(layer, keras.layers.SpectralNormalization) and (
            isinstance(layer.layer, LowRankLayer) or find_low_rank_layers(layer.layer)
        ):
            raise ValueError(
                "SpectralNormalization divides a kernel in place by its largest singular value, "
                "but a low-rank layer never forms its kernel. Take the layer out of the wrapper. "
                f"Received: layer {layer.layer.name!r} in {layer.name!r}"
            )
