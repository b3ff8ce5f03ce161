"""Finding the low-rank layers inside a model."""

import itertools

import keras

from keras_lowrank import keras_internals
from keras_lowrank.layers.low_rank_layer import LowRankLayer


def find_low_rank_layers(model: keras.layers.Layer) -> dict[str, LowRankLayer]:
    """Returns `{path: layer}` of all low-rank layers inside `model`, in order of attachment.

    A path is the names of the layers that hold the layer and its own, joined by "/", without the
    name of `model`, as in `LowRankModel.ranks`. A layer held in several places appears once.

    Args:
        model: Keras model or layer.

    Returns:
        Dict from str to `LowRankLayer`, built or not.

    Example:

    >>> model = keras.Sequential([LowRankDense(8, rank=2, name="low"), keras.layers.Dense(1)])
    >>> [(path, layer.rank) for path, layer in find_low_rank_layers(model).items()]
    [('low', 2)]
    """
    layers = layers_by_path(model).items()
    return {path: layer for path, layer in layers if isinstance(layer, LowRankLayer)}


def layers_by_path(model: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """Returns `{path: layer}` of all layers inside `model`, with the same paths, at every depth."""
    found: dict[str, keras.layers.Layer] = {}
    seen: set[int] = set()

    def search(parent, prefix):
        for layer in keras_internals.sublayers(parent):
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            path = prefix + layer.name
            if path in found:  # names need not be unique in a subclassed model
                path = next(p for i in itertools.count(1) if (p := f"{path}_{i}") not in found)
            found[path] = layer
            search(layer, path + "/")

    search(model, "")
    return found


def find_built_layers(model: keras.layers.Layer) -> dict[str, LowRankLayer]:
    """Returns those of `find_low_rank_layers` that are built, and so have factors."""
    return {path: layer for path, layer in find_low_rank_layers(model).items() if layer.built}
