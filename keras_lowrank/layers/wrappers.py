"""Layers of Keras around a low-rank layer that would write to its kernel."""

import keras

from keras_lowrank import keras_internals
from keras_lowrank.layers.low_rank_layer import LowRankLayer, find_low_rank_layers


def refuse_wrappers(model):
    """Raises ValueError where a wrapper inside `model` writes to kernels that are never formed."""
    for layer in keras_internals.all_layers(model):
        if isinstance(layer, keras.layers.SpectralNormalization) and (
            isinstance(layer.layer, LowRankLayer) or find_low_rank_layers(layer.layer)
        ):
            raise ValueError(
                "SpectralNormalization divides a kernel by its largest singular value, in place, "
                "and a low-rank layer never forms its kernel. Take the layer out of the wrapper. "
                f"Received: layer {layer.layer.name!r} in {layer.name!r}"
            )
