"""The list of all converters. To convert another family of layers, write one and list it."""

import keras

from keras_lowrank.convert.attention import AttentionConverter
from keras_lowrank.convert.converter import Converter, undecorated_class
from keras_lowrank.convert.embedding import EmbeddingConverter
from keras_lowrank.convert.recurrent import GATED, BidirectionalConverter
from keras_lowrank.convert.single_kernel import (
    DENSE,
    EINSUM_DENSE,
    Conv2DTransposeConverter,
    ConvConverter,
)

CONVERTERS: tuple[Converter, ...] = (
    DENSE,
    ConvConverter(),
    Conv2DTransposeConverter(),
    EINSUM_DENSE,
    EmbeddingConverter(),
    AttentionConverter(),
    GATED,
    BidirectionalConverter(),
)

_BY_CLASS = {cls: one for one in CONVERTERS for pair in one.classes for cls in pair}
_OF_OTHERS = Converter()

# The Keras classes with a low-rank twin, and their names for an error.
_PAIRS = [pair for one in CONVERTERS for pair in one.classes]
PLAIN = [plain for plain, low_rank in _PAIRS if plain is not low_rank]
NAMES = ", ".join(plain.__name__ for plain in PLAIN)


def converter_of(layer: keras.layers.Layer) -> Converter:
    """Returns the `Converter` of a layer: plain, low-rank, or of a class that is not converted."""
    return _BY_CLASS.get(undecorated_class(layer), _OF_OTHERS)
