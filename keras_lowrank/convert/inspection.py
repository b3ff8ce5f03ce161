"""What is in the kernels of a model: shapes, ranks, singular values, and what tolerances leave."""

from typing import NamedTuple

import numpy as np

from keras_lowrank.convert.decomposition import singular_values
from keras_lowrank.convert.graph import graph_layers
from keras_lowrank.convert.ranks import Rule
from keras_lowrank.convert.registry import PLAIN, converter_of
from keras_lowrank.keras_graphs import is_graph
from keras_lowrank.keras_internals import all_layers
from keras_lowrank.layers import LowRankLayer
from keras_lowrank.layers.find_layers import find_built_layers
from keras_lowrank.reporting.compression import count_others

TOLERANCES = (0.05, 0.1, 0.2, 0.3, 0.5)

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 24  # of a plot, in characters


class KernelSpectrum(NamedTuple):
    """One kernel of a model, and its singular values.

    Attributes:
        path: str, the layer's.
        kind: str, the class of the layer.
        shape: `(n, m)`, of the matrix.
        rank: int or None, what the layer holds; None is a whole kernel.
        values: array, the singular values, descending.
    """

    path: str
    kind: str
    shape: tuple
    rank: int | None
    values: np.ndarray


def kernels(model, track=iter):
    """Yields a `KernelSpectrum` for each layer that is low-rank or could be, in the model's order.

    Args:
        model: built `keras.Model`.
        track: callable, what the layers are gone through by: a progress bar around a sequence.
    """
    # Low-rank layers are found wherever they are; others only where conversion would find them.
    layers = graph_layers(model) if is_graph(model) else {}
    found = {
        id(one): (path, one)
        for holder, layer in layers.items()
        for path, one in converter_of(layer).kernels(holder, layer).items()
        if isinstance(one, LowRankLayer) or one.refusal() is None
    }
    found.update((id(layer), (path, layer)) for path, layer in find_built_layers(model).items())
    for path, one in track(list(found.values())):
        if isinstance(one, LowRankLayer):
            kind, factors = type(one).__name__, one.factors
            values = factors.singular_values()
            yield KernelSpectrum(path, kind, (factors.n, factors.m), factors.rank, values)
        else:
            kind, matrix = type(one.layer).__name__, one.matrix()
            yield KernelSpectrum(path, kind, matrix.shape, None, singular_values(matrix))


def reasons(model):
    """Why the layers of a model do not convert: lines of text, one for each that has weights.

    Args:
        model: built `keras.Model`.
    """
    if is_graph(model):
        layers = graph_layers(model)
    else:
        layers = {layer.name: layer for layer in all_layers(model)}
    table = [
        [path, type(layer).__name__, _reason(model, layer)]
        for path, layer in layers.items()
        if layer.weights
    ]
    return _aligned(table) if table else ["No layer has weights."]


def report(model, found):
    """The lines of text on a model and its kernels.

    Args:
        model: built `keras.Model`.
        found: list of `KernelSpectrum`, those of the model.
    """
    left = {tolerance: _left(found, tolerance) for tolerance in TOLERANCES}
    header = ["layer", "class", "n x m", "rank", "singular values".ljust(_WIDTH)]
    table = [header + [f"{tolerance}" for tolerance in TOLERANCES]]
    for kernel in found:
        n, m = kernel.shape
        ranks = [left[tolerance][kernel.path] for tolerance in TOLERANCES]
        row = [kernel.path, kernel.kind, f"{n} x {m}", str(kernel.rank or "full")]
        table.append([*row, plot(kernel.values), *(str(rank or "full") for rank in ranks)])
    others = count_others(model, [])[1] - sum(_held(k, k.rank) for k in found)
    now = others + sum(_held(kernel, kernel.rank) for kernel in found)
    full = others + sum(_held(kernel, None) for kernel in found)
    totals = [others + sum(_held(k, left[t][k.path]) for k in found) for t in TOLERANCES]
    table.append(["weights", "", "", f"{now:,}", "", *(f"{total:,}" for total in totals)])
    saved = [f"{100.0 * (1.0 - total / full):.1f}%" for total in (now, *totals)]
    table.append(["saved", "", "", saved[0], "", *saved[1:]])
    return _aligned(table)


def plot(values, width=_WIDTH):
    """One line of blocks: the singular values as heights, the largest first and full height."""
    top = values[0] if len(values) and values[0] > 0 else 1.0
    at = np.linspace(0, len(values) - 1, min(width, len(values))).round().astype(int)
    heights = np.ceil(values[at] / top * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[height] for height in heights)


def _reason(model, layer):
    converter = converter_of(layer)
    plain = next((cls for cls in type(layer).__mro__[1:] if cls in PLAIN), None)
    if converter.is_plain(layer) and is_graph(model):
        kernels = converter.kernels(layer.name, layer).values()
        return next(filter(None, (kernel.refusal() for kernel in kernels)), "It can be converted.")
    if converter.is_plain(layer):
        return (
            f"Only the code of {type(model).__name__} says what becomes of its outputs. Write its "
            "twin with `keras_lowrank.convert_layer`."
        )
    if plain is not None:
        return f"A subclass of {plain.__name__} may compute anything."
    if any(converter_of(one).is_plain(one) for one in all_layers(layer)):
        return converter.refusal(layer)
    return "There is no low-rank layer for its class."


def _left(found, tolerance):
    """`{path: rank}` that a tolerance would leave, None where the kernel stays whole."""
    return Rule(tolerance=tolerance).ranks(
        {kernel.path: kernel for kernel in found},
        {kernel.path: kernel.shape for kernel in found},
        {kernel.path: kernel.values for kernel in found},
        others=0,
        only_smaller=True,
    )


def _held(kernel, rank):
    n, m = kernel.shape
    return n * m if rank is None else rank * (n + m)


def _aligned(table):
    widths = [max(map(len, column)) for column in zip(*table)]
    return [
        "  ".join(
            cell.ljust(width) if index in (0, 1, 4) or len(row) < 5 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in table
    ]
