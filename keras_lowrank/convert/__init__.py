"""A Keras model in, a `LowRankModel` out, and the way back."""

from keras_lowrank.convert.conversion import Conversion
from keras_lowrank.convert.decomposition import Decomposition
from keras_lowrank.convert.in_place import make_low_rank
from keras_lowrank.convert.low_rank import convert_layer, from_keras
from keras_lowrank.convert.plain import to_keras

__all__ = [
    "Conversion",
    "Decomposition",
    "convert_layer",
    "from_keras",
    "make_low_rank",
    "to_keras",
]
