"""Copying models with their weights: by their graph, or made again from their config."""

from typing import Any

import keras

from keras_lowrank import keras_graphs, keras_internals
from keras_lowrank.convert.building import build_like, copy_own_state
from keras_lowrank.convert.copyable import refuse_sharing
from keras_lowrank.convert.graph import opened
from keras_lowrank.convert.graph_copy import GraphCopy
from keras_lowrank.convert.registry import converter_of
from keras_lowrank.reloading import difference, layers_by_attribute, make_again


def copy_model(model: keras.Model) -> tuple[Any, dict[int, keras.layers.Layer]]:
    """Copies a model; the copy shares no layer and no variable with it.

    A model of a class of its own is made again from its config, and keeps the class. A functional
    or Sequential one is copied layer by layer.

    Args:
        model: built `keras.Model`.

    Returns:
        The copy, and a dict from the `id` of each layer in `model` to that layer's copy.

    Raises:
        ValueError: the config does not make the model, or a layer of its graph.
    """
    if keras_graphs.is_saved_as_graph(model):
        graph = GraphCopy(lambda layer: None)
        copy = graph.of(model)
        copies = [_paired(*pair) for pair in graph.pairs() if opened(pair[0]) is None]
        return copy, {key: layer for pairs in copies for key, layer in pairs.items()}
    try:
        copy = make_again(model)
        if fault := difference(model, copy) or difference(copy, model):
            raise ValueError(fault)
        copy_state(model, copy)
    except ValueError as error:
        raise ValueError(
            "To be copied, a model must be made again, and built, from its config. Convert it in "
            "place with `make_low_rank`, or write its low-rank twin with `convert_layer`. "
            f"Received: {model.name!r} of class {type(model).__name__}, {error}"
        ) from error
    refuse_sharing(model, copy)
    return copy, _paired(model, copy)


def _paired(layer: keras.layers.Layer, copy: keras.layers.Layer) -> dict[int, keras.layers.Layer]:
    """Returns `{id: copy}` of a layer and all layers inside it."""
    inside = layers_by_attribute(copy)
    pairs = layers_by_attribute(layer).items()
    return {id(layer): copy, **{id(one): inside[key] for key, one in pairs if key in inside}}


def copy_state(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Copies weights, assets and `trainable` to a layer or model that the same config has made.

    Where `source` holds a low-rank layer and `target` a plain one, it gets the whole kernels.

    Raises:
        ValueError: a layer with weights that is in one of them only.
    """
    layers, targets = ({"": one, **layers_by_attribute(one)} for one in (source, target))
    copied, merged = set[int](), tuple[str, ...]()
    for key, other in targets.items():
        if key.startswith(merged):
            continue
        layer = layers.get(key)
        if layer is None:
            raise ValueError(f"whose config makes another layer, {other.name!r}")
        if layer.weights and not other.built:
            build_like(other, layer)
        copied.add(id(layer))
        if is_low_rank(layer) and not is_low_rank(other):
            if not isinstance(other, keras.Sequential):  # two layers, which have its weights
                converter_of(layer).copy_merged(layer, other)
            merged = (*merged, f"{key}/")
            copied.update(map(id, keras_internals.all_layers(layer)))
        else:
            copy_own_state(layer, other)
        if other.trainable != layer.trainable:  # the outermost first: it is set inside, too
            other.trainable = layer.trainable
    for layer in keras_internals.all_layers(source):
        # A delta is in the sum that the layer around it saves.
        counts = layer.weights and not getattr(layer, "beside_kernel", False)
        if counts and id(layer) not in copied:
            raise ValueError(f"whose config does not make its layer {layer.name!r}")


def is_low_rank(layer: keras.layers.Layer) -> bool:
    """Whether a layer is one that was converted as a whole, with all that it holds."""
    delta = getattr(layer, "beside_kernel", False)
    return converter_of(layer).is_low_rank(layer) and not delta
