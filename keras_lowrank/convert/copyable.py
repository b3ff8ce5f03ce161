"""What makes a model that cannot be copied, and the errors that say so."""

import collections
from typing import Any

import keras
import tensorflow as tf

from keras_lowrank import keras_graphs, keras_internals
from keras_lowrank.convert.graph import graph_layers


def check_model(model: Any, function: str) -> None:
    """Raises unless `model` is a Keras model with weights.

    Args:
        model: `keras.Model`.
        function: str, the name of the function that takes it.

    Raises:
        TypeError: no Keras model.
        ValueError: an unbuilt model.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`{function}` takes a `keras.Model`. Received: {type(model).__name__}")
    if not model.built:
        raise ValueError(
            f"`{function}` needs a model with weights. Build it, or call it on a batch. "
            f"Received: an unbuilt model {model.name!r}"
        )


def refuse_called_on_variables(layer: Any) -> None:
    """Raises where a layer is called on a variable: the graph holds it, and a copy would too."""
    called_on = (value for call in keras_graphs.calls_in_graphs(layer) for value in call)
    shared = [one for one in called_on if isinstance(one, keras.Variable | tf.Variable)]
    if shared:
        raise ValueError(
            "A graph in which a layer is called on a variable cannot be copied: the copy would "
            "share it. Put the variable into a layer. Received: the variable "
            f"{getattr(shared[0], 'path', shared[0].name)!r}, that {layer.name!r} is called on"
        )


def refuse_sharing(model: keras.Model, copy: keras.Model) -> None:
    """Raises where a copy shares a layer or a variable with its original."""
    parts = [*keras_internals.all_layers(model), *model.variables]
    mine = {id(part) for part in parts}
    both = [*keras_internals.all_layers(copy), *copy.variables]
    shared = [part.name for part in both if id(part) in mine]
    if shared:
        raise ValueError(
            "A copy must share no layer and no variable with its original: `get_config` must "
            "describe the layers inside a layer, and `from_config` must make new ones. "
            f"Received: {', '.join(shared)}, in both"
        )


def refuse_shared_variables(model: keras.Model) -> None:
    """Raises where two layers of a graph share a variable: in a copy they would not."""
    owners = collections.defaultdict(list)
    for path, layer in graph_layers(model).items():
        for variable in layer.weights:
            owners[id(variable)].append(path)
    shared = next((paths for paths in owners.values() if len(paths) > 1), None)
    if shared:
        raise ValueError(
            "Two layers that share a variable cannot be copied: the copies would not share it. Use "
            "one layer twice. For a table that also projects back, call one `LowRankEmbedding` a "
            "second time with `reverse=True`. "
            f"Received: the layers {', '.join(shared)}"
        )
