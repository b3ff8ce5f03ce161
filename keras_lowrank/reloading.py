"""A check, before a model is saved, that it will load again."""

import random
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_lowrank import keras_graphs, keras_internals
from keras_lowrank.layers import LowRankLayer


def check_reloads(model: keras.Model) -> None:
    """Raises unless the config of a model makes layers for all weights of the model.

    A graph of layers is saved as it is. A model or layer whose code makes its layers is made by its
    `__init__` when it is loaded. Layers that replaced others after `__init__`, or that nothing
    builds, are then missing.

    Args:
        model: built `keras.Model`.

    Raises:
        ValueError: the model would not load, with Keras's reason or the difference.
    """
    owners: dict[int, str] = {}
    for path, layer, is_part in _saved_parts(model):
        fault = _fault(layer) if is_part else None
        inside = keras_internals.all_layers(layer) if is_part else []
        for one in (layer, *inside):
            if one.weights and owners.setdefault(id(one), path) != path:
                fault = f"whose layer {one.name!r} would load as another one than {owners[id(one)]}"
        if fault:
            raise ValueError(
                "A saved model must load again: its config must make all layers that it holds. "
                "Make layers in `__init__` or `build` of the model or layer that holds them, do "
                "not replace them later, and use none both inside and outside of a nested model. "
                "Or save the weights alone, with `save_weights`. "
                f"Received: {path} of class {type(layer).__name__}, {fault}"
            )


def _saved_parts(
    layer: keras.layers.Layer, path: str = ""
) -> Iterator[tuple[str, keras.layers.Layer, bool]]:
    """Yields `(path, layer, whether its code makes layers inside it)` for a graph's layers."""
    path = f"{path}{layer.name}"
    if keras_graphs.is_saved_as_graph(layer):
        for one in layer.layers:
            yield from _saved_parts(one, f"{path}/")
    else:
        yield path, layer, bool(keras_internals.sublayers(layer))


def _fault(part: keras.layers.Layer) -> str | None:
    """Makes `part` from its config, and returns why it would not load, or None."""
    try:
        return difference(part, make_again(part))
    except ValueError as error:
        # A class without a registered name: the user passes `custom_objects` when loading.
        return None if "Could not locate" in str(error.__cause__) else str(error)


def make_again(layer: keras.layers.Layer) -> Any:
    """Makes another layer or model from the config of one, with weights of its own.

    The caller's random numbers and layer names are left as they were.

    Args:
        layer: built `keras.layers.Layer` or `keras.Model`.

    Raises:
        ValueError: the config does not make it, with Keras's reason.
    """
    states = random.getstate(), np.random.get_state()
    try:
        with keras_graphs.names_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _made_again(layer)
    except Exception as error:  # the code of a class may raise anything
        # Keras prints pages of config before the cause.
        text = str(error).rpartition("Exception encountered: ")[2].strip()
        reason = text.splitlines()[0] if text else f"{error!r:.300}"
        raise ValueError(f"which its config does not make: {reason}") from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _made_again(layer: keras.layers.Layer) -> Any:
    classes = [type(one) for one in (layer, *keras_internals.all_layers(layer))]
    # What has changed its class in place is saved as what it was.
    classes += [keras_graphs.original_class(cls) for cls in classes]
    config = keras.saving.serialize_keras_object(layer)
    config.pop("compile_config", None)
    with keras.saving.custom_object_scope({cls.__name__: cls for cls in classes}):
        made: Any = keras.saving.deserialize_keras_object(config, safe_mode=False)
        arguments = keras_graphs.called_with(layer)
        if arguments is not None:
            made(*arguments[0], **arguments[1])
    return made


def difference(one: keras.layers.Layer, other: keras.layers.Layer) -> str | None:
    """Returns the innermost difference between a layer and its copy, or None.

    `one` may hold more layers than `other`: loading does not ask for them.
    """
    inside, made = _children(one), _children(other)
    for key in made:
        if key in inside and (found := difference(inside[key], made[key])):
            return found
    missing = any(made[key].weights for key in made.keys() - inside.keys())
    if missing or _outline(one, inside) != _outline(other, made):
        return f"whose config makes {_described(other)} where it holds {_described(one)}"
    return None


def _children(layer: keras.layers.Layer) -> dict[Any, keras.layers.Layer]:
    """Returns the layers that a layer holds, by the attributes under which Keras saves them."""
    return dict(enumerate(_in_graph(layer))) or _in_attributes(layer)


def _in_attributes(layer: keras.layers.Layer) -> dict[Any, keras.layers.Layer]:
    found: dict[Any, keras.layers.Layer] = {}
    for name, value in sorted(vars(layer).items()):
        values = value.values() if isinstance(value, dict) else value
        held = list(values) if isinstance(value, (dict, list, tuple)) else [value]
        # Keras and TensorFlow keep lists of all of them in these.
        if name != "_layers" and not name.startswith("_self_unconditional_"):
            found.update({(name, i): x for i, x in enumerate(held) if _is_layer(x)})
    return found


def layers_by_attribute(model: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """Returns `{key: layer}` of all layers inside `model`, at every depth.

    A key is made of the attributes that lead to the layer, and of places in graphs. It is the same
    in a model that is made again, where Keras may number the names of layers otherwise.
    """
    found: dict[str, keras.layers.Layer] = {}
    seen: set[int] = set()

    def search(parent, prefix):
        held = {(index,): one for index, one in enumerate(_in_graph(parent))}
        for part, layer in {**held, **_in_attributes(parent)}.items():
            if id(layer) not in seen:
                seen.add(id(layer))
                key = prefix + ".".join(map(str, part))
                found[key] = layer
                search(layer, f"{key}/")

    search(model, "")
    return found


def _in_graph(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    return layer.layers if keras_graphs.is_graph(layer) else []


def _is_layer(value: Any) -> bool:
    return isinstance(value, keras.layers.Layer)


def _outline(layer: keras.layers.Layer, inside: dict[Any, keras.layers.Layer]) -> tuple[type, Any]:
    """Returns what a layer and its copy must have in common; ranks may differ."""
    held = {id(weight) for one in inside.values() for weight in one.weights}
    own = [tuple(weight.shape) for weight in layer.weights if id(weight) not in held]
    return type(layer), len(layer.weights) if isinstance(layer, LowRankLayer) else own


def _described(layer: keras.layers.Layer) -> str:
    shapes = ", ".join(str(tuple(weight.shape)) for weight in layer.weights[:4])
    return f"{type(layer).__name__} {layer.name!r} with {shapes or 'no'} weights"
