"""Would a model that is saved load again? Asked before a file is written that never would."""

import random
import warnings

import keras
import numpy as np

from keras_lowrank import keras_graphs, keras_internals
from keras_lowrank.layers import LowRankLayer


def check_reloads(model):
    """Raises unless what the config of a model makes has room for the weights of the model.

    A graph of layers is saved as it is. What only the code of a class describes, a model or a layer
    that holds layers, is made by its `__init__` when it is loaded: layers that were put in the
    place of others since then, or that are built by nobody, are not there.

    Args:
        model: built `keras.Model`.

    Raises:
        ValueError: it would not load. The words of Keras, or what differs.
    """
    owners = {}
    for path, layer, is_part in _saved_parts(model):
        fault = _fault(layer) if is_part else None
        inside = keras_internals.all_layers(layer) if is_part else []
        for one in (layer, *inside):
            if one.weights and owners.setdefault(id(one), path) != path:
                fault = f"whose layer {one.name!r} would be another one than {owners[id(one)]}"
        if fault:
            raise ValueError(
                "A model must be one that loads again, to be saved: what its config makes must "
                "hold the layers that it holds. Make layers in `__init__` and `build` of what "
                "holds them, not in the place of others, and use none inside a nested model and "
                "outside of it. `save_weights` saves the weights alone. "
                f"Received: {path} of class {type(layer).__name__}, {fault}"
            )


def _saved_parts(layer, path=""):
    """Yields `(path, layer, whether it is a part that is made by code)` of what a graph holds."""
    path = f"{path}{layer.name}"
    if keras_graphs.is_saved_as_graph(layer):
        for one in layer.layers:
            yield from _saved_parts(one, f"{path}/")
    else:
        yield path, layer, bool(keras_internals.sublayers(layer))


def _fault(part):
    """What keeps `part` from being loaded, or None.

    It is made once more, which neither draws from the caller's random numbers nor counts.
    """
    states = random.getstate(), np.random.get_state()
    try:
        with keras_graphs.names_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _made_again(part)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _made_again(part):
    classes = {type(one) for one in (part, *keras_internals.all_layers(part))}
    # What was converted in place is saved as what it was.
    classes |= {cls.plain_class for cls in classes if hasattr(cls, "plain_class")}
    config = keras.saving.serialize_keras_object(part)
    config.pop("compile_config", None)
    try:
        with keras.saving.custom_object_scope({cls.__name__: cls for cls in classes}):
            made = keras.saving.deserialize_keras_object(config, safe_mode=False)
            arguments = keras_graphs.called_with(part)
            if arguments is not None:
                made(*arguments[0], **arguments[1])
    except Exception as error:  # whatever the code of a class raises
        if "Could not locate" in str(error):
            return None  # who loads it passes `custom_objects`
        # Keras puts the cause behind pages of config.
        text = str(error).rpartition("Exception encountered: ")[2].strip()
        return f"which its config does not make: {text.splitlines()[0] if text else error!r:.300}"
    return _difference(part, made)


def _difference(one, other):
    """How two layers that should be of one make differ, or None: the innermost difference.

    What `other` has not is not asked for when it is loaded, and may be there.
    """
    inside, made = _children(one), _children(other)
    for key in made:
        if key in inside and (found := _difference(inside[key], made[key])):
            return found
    missing = any(made[key].weights for key in made.keys() - inside.keys())
    if missing or _outline(one, inside) != _outline(other, made):
        return f"whose config makes {_described(other)} where it holds {_described(one)}"
    return None


def _children(layer):
    """What a layer holds itself, by the attributes under which Keras saves it."""
    return dict(enumerate(_in_graph(layer))) or _in_attributes(layer)


def _in_attributes(layer):
    found = {}
    for name, value in sorted(vars(layer).items()):
        values = value.values() if isinstance(value, dict) else value
        held = list(values) if isinstance(value, (dict, list, tuple)) else [value]
        # Beside attributes, lists of all of them that Keras and TensorFlow keep for themselves.
        if name != "_layers" and not name.startswith("_self_unconditional_"):
            found.update({(name, i): x for i, x in enumerate(held) if _is_layer(x)})
    return found


def layers_by_attribute(model):
    """Returns `{key: layer}` of all layers inside `model`, at every depth.

    A key is made of the attributes that lead to the layer, and of places in graphs: it is the same
    in a model that is made again, where Keras may number the names of layers otherwise.
    """
    found, seen = {}, set()

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


def _in_graph(layer):
    return layer.layers if keras_graphs.is_graph(layer) else []


def _is_layer(value):
    return isinstance(value, keras.layers.Layer)


def _outline(layer, inside):
    """What a layer and its copy have in common; ranks may differ."""
    held = {id(weight) for one in inside.values() for weight in one.weights}
    own = [tuple(weight.shape) for weight in layer.weights if id(weight) not in held]
    return type(layer), len(layer.weights) if isinstance(layer, LowRankLayer) else own


def _described(layer):
    shapes = ", ".join(str(tuple(weight.shape)) for weight in layer.weights[:4])
    return f"{type(layer).__name__} {layer.name!r} with {shapes or 'no'} weights"
