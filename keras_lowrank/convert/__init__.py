"""A Keras model in, a `LowRankModel` out, and the way back."""

from keras_lowrank.convert.decomposition import Decomposition
from keras_lowrank.convert.low_rank import convert_layer, from_keras
from keras_lowrank.convert.plain import to_keras

__all__ = ["Decomposition", "convert_layer", "from_keras", "to_keras"]
