"""The layers in a graph of layers, nested graphs too."""

import keras

from keras_lowrank.keras_graphs import is_graph


def opened(layer: keras.layers.Layer) -> list[keras.layers.Layer] | None:
    """Returns the layers inside a graph or a `TimeDistributed`, which is copied layer by layer.

    Returns:
        List of layers; None for any other layer.
    """
    if is_graph(layer):
        return layer.layers
    return [layer.layer] if type(layer) is keras.layers.TimeDistributed else None


def graph_layers(model: keras.Model, wrappers: bool = False) -> dict[str, keras.layers.Layer]:
    """Returns `{path: layer}` of the layers in the graph of `model`, inside nested graphs too.

    Paths are those of `LowRankModel.ranks`: names joined by "/". A layer that is used in several
    places appears once, under its first path.

    Args:
        model: functional or Sequential `keras.Model`.
        wrappers: bool, whether to list each `TimeDistributed` too.
    """
    found: dict[str, keras.layers.Layer] = {}
    seen: set[int] = set()

    def search(parent, prefix):
        for layer in opened(parent) or ():
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            if opened(layer) is None or (wrappers and not is_graph(layer)):
                found[prefix + layer.name] = layer
            if opened(layer) is not None:
                search(layer, f"{prefix}{layer.name}/")

    search(model, "")
    return found
