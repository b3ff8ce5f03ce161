"""Which kernels of a model are meant: by name, path, pattern, type or predicate of layers."""

import fnmatch
import itertools
import warnings

import keras

from keras_lowrank import keras_internals
from keras_lowrank.convert.converter import Kernel
from keras_lowrank.convert.graph import graph_layers, opened
from keras_lowrank.convert.registry import NAMES, converter_of


def select_kernels(model, include, exclude):
    """Returns `{path: Kernel}` of the kernels of a model that are to become low-rank.

    Warns of layers that stay as they are.

    Args:
        model: built `keras.Model`, a graph of layers.
        include: as in `from_keras`.
        exclude: as in `from_keras`.

    Raises:
        ValueError: no kernel, a string that means no layer, or an item of another kind.
    """
    candidates = {}
    for path, layer in graph_layers(model, wrappers=True).items():
        converter = converter_of(layer)
        kernels = converter.convertible_kernels(path, layer)
        if kernels or (not converter.is_low_rank(layer) and _holds_plain(layer)):
            # With what holds the kernels, so that it can be named in the place of all of them.
            candidates.update({path: layer, **kernels})
    refused = {}
    for path, one in select(candidates, include, exclude).items():
        converter = converter_of(_layer(one))
        # What only holds kernels that were found stands for them, and is done with.
        if isinstance(one, Kernel) or not (opened(one) or converter.kernels(path, one)):
            refused[path] = converter.refusal(_layer(one))
    chosen = {path: candidates[path] for path, reason in refused.items() if reason is None}
    left = _by_reason(refused)
    if not chosen:
        raise ValueError(
            "`from_keras` needs a layer to convert, in the graph of the model and left by "
            f"`include` and `exclude`: {NAMES}. Received: {left or 'none'}"
        )
    if left:
        warnings.warn(f"Some layers stay as they are. {left}", stacklevel=3)
    return chosen


def matches(path, layer, text):
    """Whether a string, a pattern or not, means the layer: its path or name, or what holds it."""
    names, name = path.split("/"), _layer(layer).name
    whole = itertools.accumulate(names, "{}/{}".format)
    return any(fnmatch.fnmatchcase(name, text) for name in (name, names[-1], *whole))


def unknown(layers, argument, text):
    """The error for a string that means no layer."""
    return ValueError(
        f"`{argument}` must name layers that can be low-rank, by path, name or pattern: "
        f"{', '.join(layers) or 'there is none'}. Received: {text!r}"
    )


def _holds_plain(layer):
    return any(converter_of(one).is_plain(one) for one in keras_internals.all_layers(layer))


def _by_reason(refused):
    """One sentence for each reason, and not one for each block of a model."""
    paths = {}
    for path, reason in refused.items():
        if reason is not None:
            paths.setdefault(reason, []).append(path)
    return "; ".join(f"{_listed(some)}: {reason}" for reason, some in paths.items())


def _listed(paths):
    some = ", ".join(paths[:3])
    return some if len(paths) <= 3 else f"{some}, ... ({len(paths)} layers)"


def select(layers, include, exclude):
    """Returns those of `{path: layer}` that are included and not excluded."""
    chosen = layers if include is None else _matching(layers, "include", include)
    dropped = {} if exclude is None else _matching(layers, "exclude", exclude)
    return {path: layer for path, layer in chosen.items() if path not in dropped}


def _matching(layers, argument, items):
    items = items if isinstance(items, (list, tuple, set)) else [items]
    found = {}
    for item in items:
        test = layer_test(argument, item)
        hits = {path: layer for path, layer in layers.items() if test(path, layer)}
        if isinstance(item, str) and not hits:
            raise unknown(layers, argument, item)
        found.update(hits)
    inside = tuple(f"{path}/" for path in found)
    return {path: one for path, one in layers.items() if path in found or path.startswith(inside)}


def layer_test(argument, item):
    """A predicate of `(path, layer)` for an item of `include`, `exclude` and the like."""
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
    """The layer of a kernel; what else can be named is a layer."""
    return holder.layer if isinstance(holder, Kernel) else holder
