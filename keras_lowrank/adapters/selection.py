"""Which layers of a model get a delta, and which of its other variables are trained."""

import fnmatch
from typing import Any

import keras

from keras_lowrank import keras_internals
from keras_lowrank.adapters.families import family_of
from keras_lowrank.convert.selection import layer_test, matches, select, unknown
from keras_lowrank.layers.find_layers import layers_by_path

# Of a variable: that of its layer among all, and its own in the layer. The names of layers differ
# from one model to the next of its kind. The second counts from the end, as -1: the kernel, which a
# quantized layer does not train, is at the beginning.
Place = tuple[int, int]


def adaptable_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """`{path: layer}` of all layers that can have a delta."""
    return {p: layer for p, layer in layers_by_path(model).items() if family_of(layer)}


def select_layers(model: keras.Model, include: Any, exclude: Any) -> dict[str, keras.layers.Layer]:
    """`{path: layer}` of the layers that get a delta.

    Args:
        model: built `keras.Model`.
        include: as in `add_adapters`.
        exclude: as in `add_adapters`.

    Raises:
        ValueError: no layer is left, or a string that means none.
    """
    layers = adaptable_layers(model)
    chosen = select(_default(model, layers) if include is None else layers, include, exclude)
    if not chosen:
        raise ValueError(
            "`add_adapters` needs a layer with a kernel, built, and left by `include` and "
            f"`exclude`. Received: include={include!r}, exclude={exclude!r}, in a model with "
            f"{', '.join(layers) or 'none'}"
        )
    return chosen


def _default(
    model: keras.Model, layers: dict[str, keras.layers.Layer]
) -> dict[str, keras.layers.Layer]:
    """Where LoRA goes, as the model says itself, else all projections."""
    for one in (model, *keras_internals.all_layers(model)):
        names: list[str] = getattr(one, "default_lora_layer_names", list)()
        found = {p: x for p, x in layers.items() if any(matches(p, x, name) for name in names)}
        if found:
            return found
    return {path: layer for path, layer in layers.items() if family_of(layer).is_projection}


def learnable(model: keras.Model) -> dict[Place, keras.Variable]:
    """`{place: variable}` of what may be learned beside deltas, in a model that has none yet.

    Variables that were made to be trained, and statistics, such as moving means.
    """
    made, found = {id(v) for v in keras_internals.made_to_train(model)}, {}
    for index, layer in enumerate([model, *keras_internals.all_layers(model)]):
        moving = {id(v) for v in statistics_of(layer)}
        own = [v for v in keras_internals.own_variables(layer) if id(v) in made | moving]
        found.update({(index, i - len(own)): variable for i, variable in enumerate(own)})
    return found


def statistics_of(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Own variables of a layer that its training moves without a gradient."""
    if getattr(layer, "quantization_mode", None):  # kernels in int8, and their scales
        return []
    made = {id(v) for v in keras_internals.made_to_train(layer)}
    return [v for v in keras_internals.own_variables(layer) if id(v) not in made]


def select_variables(model: keras.Model, items: Any) -> list[Place]:
    """The places of those variables that are learned beside the deltas, among all `learnable`.

    A layer with one of them learns its statistics too.

    Args:
        model: `keras.Model` whose layers have no deltas yet.
        items: as `trainable` of `add_adapters`.

    Raises:
        ValueError: a string that means neither a layer nor a variable, or another item.
    """
    if items is None:
        return []
    items = items if isinstance(items, (list, tuple, set)) else [items]
    layers, chosen = layers_by_path(model), set[int]()
    made = keras_internals.made_to_train(model)
    for item in items:
        test = layer_test("trainable", item)
        held = [v for p, layer in layers.items() if test(p, layer) for v in layer.weights]
        named = [v for v in made if isinstance(item, str) and fnmatch.fnmatchcase(v.name, item)]
        if isinstance(item, str) and not (held or named):
            raise unknown(layers, "trainable", item)
        chosen.update(id(v) for v in (*held, *named))
    for layer in keras_internals.all_layers(model):
        if chosen.intersection(map(id, keras_internals.own_variables(layer))):
            chosen.update(map(id, statistics_of(layer)))
    return [place for place, v in learnable(model).items() if id(v) in chosen]


def with_idle_statistics(model: keras.Model, learned: set[int]) -> list[keras.layers.Layer]:
    """The layers whose statistics would move in training, though nothing of them is learned.

    Such as batch normalization. Frozen, it computes what it does in inference.

    Args:
        model: `keras.Model`.
        learned: set of the ids of variables that are learned.
    """
    return [
        layer
        for layer in keras_internals.all_layers(model)
        if (moving := statistics_of(layer))
        and not (keras_internals.sublayers(layer) or learned.intersection(map(id, moving)))
    ]
