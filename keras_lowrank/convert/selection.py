"""Which layers of a model are meant: by name, path, pattern, type or predicate."""

import fnmatch
import itertools

import keras

from keras_lowrank.convert.kinds import GatesKernel


def select(layers, include, exclude):
    """Returns those of `{path: layer}` that are included and not excluded.

    Raises:
        ValueError: a string that means none of the layers, or an item of another kind.
    """
    chosen = layers if include is None else _matching(layers, "include", include)
    dropped = {} if exclude is None else _matching(layers, "exclude", exclude)
    return {path: layer for path, layer in chosen.items() if path not in dropped}


def matches(path, layer, text):
    """Whether a string, a pattern or not, means the layer: its path or name, or what holds it."""
    names = path.split("/")
    whole = itertools.accumulate(names, "{}/{}".format)
    return any(fnmatch.fnmatchcase(name, text) for name in (layer.name, names[-1], *whole))


def unknown(layers, argument, text):
    """The error for a string that means no layer."""
    return ValueError(
        f"`{argument}` must name layers that can be converted, by path, name or pattern: "
        f"{', '.join(layers) or 'there is none'}. Received: {text!r}"
    )


def _matching(layers, argument, items):
    items = items if isinstance(items, (list, tuple, set)) else [items]
    found = {}
    for item in items:
        test = _test(argument, item)
        hits = {path: layer for path, layer in layers.items() if test(path, layer)}
        if isinstance(item, str) and not hits:
            raise unknown(layers, argument, item)
        found.update(hits)
    inside = tuple(f"{path}/" for path in found)
    return {path: one for path, one in layers.items() if path in found or path.startswith(inside)}


def _test(argument, item):
    if isinstance(item, str):
        return lambda path, layer: matches(path, layer, item)
    if isinstance(item, type) and issubclass(item, keras.layers.Layer):
        return lambda path, layer: isinstance(_layer(layer), item)
    if callable(item) and not isinstance(item, type):
        return lambda path, layer: item(_layer(layer))
    raise ValueError(
        f"`{argument}` must hold names, patterns, layer classes or functions of a layer. "
        f"Received: {item!r}"
    )


def _layer(holder):
    """What holds a kernel, as a user knows it: a layer."""
    return holder.owner if isinstance(holder, GatesKernel) else holder
