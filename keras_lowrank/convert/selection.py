"""Selecting kernels of a model: by name, path, pattern, type or predicate of layers."""

import collections
import fnmatch
import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_lowrank import keras_internals
from keras_lowrank.convert.converter import Kernel
from keras_lowrank.convert.graph import graph_layers, opened
from keras_lowrank.convert.registry import NAMES, converter_of
from keras_lowrank.keras_internals import own_variables
from keras_lowrank.layers.find_layers import layers_by_path


def select_kernels(
    model: keras.Model, include: Any, exclude: Any, factorization: str
) -> dict[str, Kernel]:
    """Returns `{path: Kernel}` of the kernels of a model that are to become low-rank.

    Warns of selected layers that stay as they are.

    Args:
        model: built `keras.Model`, a graph of layers.
        include: as in `from_keras`.
        exclude: as in `from_keras`.
        factorization: as in `from_keras`.

    Raises:
        ValueError: no kernel, a string that means no layer, or an item of another kind.
    """
    candidates = {}
    for path, layer in graph_layers(model, wrappers=True).items():
        converter = converter_of(layer)
        kernels = in_form(converter.convertible_kernels(path, layer), factorization)
        if kernels or (not converter.is_low_rank(layer) and _holds_plain(layer)):
            # With the layer that holds them, whose name stands for all of them.
            candidates.update({path: layer, **kernels})
    refused = {}
    for path, one in select(candidates, include, exclude).items():
        # A layer that only holds kernels that were found needs no reason of its own.
        if isinstance(one, Kernel):
            refused[path] = one.refusal()
        elif not (opened(one) or converter_of(one).kernels(path, one)):
            refused[path] = converter_of(one).refusal(one)
    chosen = {path: candidates[path] for path, reason in refused.items() if reason is None}
    left = _by_reason(refused)
    if not chosen:
        raise ValueError(
            "`from_keras` needs a layer to convert in the graph of the model, selected by "
            f"`include` and `exclude`: {NAMES}. Received: {left or 'none'}"
        )
    if left:
        warnings.warn(f"Some layers stay as they are. {left}", stacklevel=3)
    return chosen


def hides_kernels(model: keras.Model) -> bool:
    """Whether a layer in a graph holds layers that could be low-rank, and only its code says how.

    Args:
        model: `keras.Model`, a graph of layers.
    """
    layers = [one for one in graph_layers(model).values() if opened(one) is None]
    return any(not converter_of(one).kernels("", one) and _holds_plain(one) for one in layers)


def warn_of_refused(layers: dict[str, keras.layers.Layer], include: Any, exclude: Any) -> None:
    """Warns of kernels that are selected and cannot become low-rank, with the reasons.

    Args:
        layers: as in `select_in_place`.
        include: as in `from_keras`.
        exclude: as in `from_keras`.
    """
    _, reasons = select_in_place(layers, include, exclude)
    if left := _by_reason({p: r for p, r in reasons.items() if r != _LEFT_OUT}):
        warnings.warn(f"Some layers stay as they are. {left}", stacklevel=3)


def select_in_place(
    layers: dict[str, keras.layers.Layer],
    include: Any,
    exclude: Any,
    factorization: str = "matrix",
) -> tuple[dict[str, Kernel], dict[str, str | None]]:
    """Returns `({path: Kernel}, {path: reason})` of all kernels; None where one is to be low-rank.

    Args:
        layers: `{path: layer}`, all layers of a model at every depth.
        include: as in `make_low_rank`.
        exclude: as in `make_low_rank`.
        factorization: as in `make_low_rank`.

    Raises:
        ValueError: a string that means no layer, or an item of another kind.
    """
    candidates: dict[str, Any] = {}
    kernels: dict[str, Kernel] = {}
    for path, layer in layers.items():
        converter = converter_of(layer)
        found = converter.convertible_kernels(path, layer).items() if layer.built else ()
        # Those of layers that this one holds are found there.
        own = {one: kernel for one, kernel in found if kernel.layer is layer}
        own = in_form(own, factorization)
        kernels.update(own)
        if own or _holds_plain(layer):
            candidates.update({path: layer, **own})
    owners = collections.Counter(id(v) for one in layers.values() for v in own_variables(one))
    chosen = select(candidates, include, exclude)
    reasons: dict[str, str | None] = dict.fromkeys(kernels, _LEFT_OUT)
    for path in kernels.keys() & chosen.keys():
        shared = any(owners[id(v)] > 1 for v in kernels[path].layer.weights)
        reasons[path] = _SHARED if shared else kernels[path].refusal()
    return kernels, reasons


_LEFT_OUT = "Left out by `include` or `exclude`."
_SHARED = (
    "Another layer holds a weight of it, and would go on with the one from before. Use one layer "
    "in both places."
)


def in_form(kernels: dict[str, Kernel], factorization: str) -> dict[str, Kernel]:
    """Returns the same `{path: Kernel}`, those of convolutions to have a form if they can."""
    return {
        path: one._replace(converter=one.converter.in_form(one.layer, factorization))
        for path, one in kernels.items()
    }


def convertible(model: keras.Model, factorization: str = "matrix") -> dict[str, Kernel]:
    """Returns `{path: Kernel}` of all kernels of a model that can become low-rank."""
    kernels, reasons = select_in_place(layers_by_path(model), None, None, factorization)
    return {path: kernel for path, kernel in kernels.items() if reasons[path] is None}


def matches(path: str, layer: Any, text: str) -> bool:
    """Whether a name, path or pattern means the layer, or a layer or model that holds it."""
    names, name = path.split("/"), _layer(layer).name
    whole = itertools.accumulate(names, "{}/{}".format)
    return any(fnmatch.fnmatchcase(name, text) for name in (name, names[-1], *whole))


def unknown(layers: Iterable[str], argument: str, text: str) -> ValueError:
    """Returns the error for a string that means no layer."""
    return ValueError(
        f"`{argument}` must name layers that can be low-rank, by path, name or pattern: "
        f"{', '.join(layers) or 'there is none'}. Received: {text!r}"
    )


def _holds_plain(layer: keras.layers.Layer) -> bool:
    return any(converter_of(one).is_plain(one) for one in keras_internals.all_layers(layer))


def _by_reason(refused: dict[str, str | None]) -> str:
    """Returns one sentence for each reason, and not one for each layer."""
    paths: dict[str, list[str]] = {}
    for path, reason in refused.items():
        if reason is not None:
            paths.setdefault(reason, []).append(path)
    return "; ".join(f"{_listed(some)}: {reason}" for reason, some in paths.items())


def _listed(paths: list[str]) -> str:
    some = ", ".join(paths[:3])
    return some if len(paths) <= 3 else f"{some}, ... ({len(paths)} layers)"


def select(layers: dict[str, Any], include: Any, exclude: Any) -> dict[str, Any]:
    """Returns those of `{path: layer}` that are included and not excluded."""
    chosen = layers if include is None else _matching(layers, "include", include)
    dropped = {} if exclude is None else _matching(layers, "exclude", exclude)
    return {path: layer for path, layer in chosen.items() if path not in dropped}


def _matching(layers: dict[str, Any], argument: str, items: Any) -> dict[str, Any]:
    """Returns those of `{path: layer}` that some items mean, and all inside them."""
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


def layer_test(argument: str, item: Any) -> Callable[[str, Any], bool]:
    """Returns a predicate of `(path, layer)` for an item of `include`, `exclude` and the like."""
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


def _layer(holder: Any) -> keras.layers.Layer:
    """Returns the layer of a `Kernel`, or the layer itself."""
    return holder.layer if isinstance(holder, Kernel) else holder
