"""What is in the kernels of a model: shapes, ranks, singular values, and ranks by tolerance."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_lowrank.convert.conversion import weights_left
from keras_lowrank.convert.converter import merged_kernel
from keras_lowrank.convert.forms import Form, Rank, TuckerForm, form_of
from keras_lowrank.convert.ranks import Rule
from keras_lowrank.convert.selection import convertible, select_in_place
from keras_lowrank.layers import LowRankLayer
from keras_lowrank.layers.find_layers import layers_by_path
from keras_lowrank.reporting.compression import count_others

TOLERANCES = (0.05, 0.1, 0.2, 0.3, 0.5)

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 24  # of a plot, in characters


class KernelSpectrum(NamedTuple):
    """One kernel of a model, and its singular values.

    Attributes:
        path: str, the path of the layer.
        kind: str, the class of the layer.
        form: `Form`, the present one of a low-rank layer, else that which a conversion would give.
        rank: the rank of the layer, as `layer.rank`; None for a whole kernel.
        values: list of arrays, the singular values of each side, descending.
    """

    path: str
    kind: str
    form: Form
    rank: Rank | None
    values: list[np.ndarray]


def kernels(
    model: keras.Model,
    factorization: str = "matrix",
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Iterator[KernelSpectrum]:
    """Yields a `KernelSpectrum` for each layer that is low-rank or could be, in the model's order.

    Args:
        model: built `keras.Model`.
        factorization: str, as in `from_keras`, for convolutions of Keras.
        track: callable from a sequence to an iterable over it, such as a progress bar.
    """
    whole = convertible(model, factorization)
    of_layers: dict[int, list[tuple[str, Any]]] = {}
    for path, kernel in whole.items():
        of_layers.setdefault(id(kernel.layer), []).append((path, kernel))
    found: list[tuple[str, Any]] = []
    for path, layer in layers_by_path(model).items():
        low_rank = isinstance(layer, LowRankLayer) and layer.built
        found += [(path, layer)] if low_rank else of_layers.get(id(layer), [])
    for path, one in track(found):
        if isinstance(one, LowRankLayer):
            form = form_of(one.factors)
            if isinstance(form, TuckerForm):
                values = form.values(merged_kernel(one))
            else:
                values = [one.factors.singular_values()]
            yield KernelSpectrum(path, type(one).__name__, form, one.factors.rank, values)
        else:
            kind, form = type(one.layer).__name__, one.form
            yield KernelSpectrum(path, kind, form, None, form.values(one.matrix()))


def reasons(model: keras.Model) -> list[str]:
    """Returns a line of text for each weight that stays whole, with the reason.

    Args:
        model: built `keras.Model`.
    """
    layers = layers_by_path(model)
    left = weights_left(model, layers, *select_in_place(layers, None, None))
    table = [[path, one.reason] for path, one in left.items()]
    return _aligned(table) if table else ["No layer has a kernel."]


def report(model: keras.Model, found: list[KernelSpectrum]) -> list[str]:
    """Returns the lines of text on a model and its kernels.

    A Tucker-2 kernel has a line for each of its sides, with the shape of that unfolding.

    Args:
        model: built `keras.Model`.
        found: list of `KernelSpectrum`, of all kernels of the model.
    """
    left = {tolerance: _left(found, tolerance) for tolerance in TOLERANCES}
    header = ["layer", "class", "n x m", "rank", "singular values".ljust(_WIDTH)]
    table = [header + [f"{tolerance}" for tolerance in TOLERANCES]]
    for kernel in found:
        ranks = [left[tolerance][kernel.path] for tolerance in TOLERANCES]
        by_side = [kernel.form.sides(rank) for rank in (kernel.rank, *ranks)]
        for side, values in zip(by_side[0], kernel.values):
            present, *cut = (str(sides[side][1] or "full") for sides in by_side)
            path, shape = f"{kernel.path}/{side}".rstrip("/"), str(by_side[0][side][0])
            table.append([path, kernel.kind, shape, present, plot(values), *cut])
    others = count_others(model, [])[1] - sum(_held(k, k.rank) for k in found)
    now = others + sum(_held(kernel, kernel.rank) for kernel in found)
    full = others + sum(_held(kernel, None) for kernel in found)
    totals = [others + sum(_held(k, left[t][k.path]) for k in found) for t in TOLERANCES]
    table.append(["weights", "", "", f"{now:,}", "", *(f"{total:,}" for total in totals)])
    saved = [f"{100.0 * (1.0 - total / full):.1f}%" for total in (now, *totals)]
    table.append(["saved", "", "", saved[0], "", *saved[1:]])
    return _aligned(table)


def plot(values: np.ndarray, width: int = _WIDTH) -> str:
    """Draws singular values as one line of blocks, relative to the largest.

    Args:
        values: array, descending.
        width: int, the largest number of characters.
    """
    top = values[0] if len(values) and values[0] > 0 else 1.0
    at = np.linspace(0, len(values) - 1, min(width, len(values))).round().astype(int)
    heights = np.ceil(values[at] / top * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[height] for height in heights)


def _left(found: list[KernelSpectrum], tolerance: float) -> dict[str, Rank | None]:
    """Returns the rank of each kernel under a tolerance; None where it stays whole."""
    return Rule(tolerance=tolerance).ranks(
        {kernel.path: kernel for kernel in found},
        {kernel.path: kernel.form for kernel in found},
        {kernel.path: kernel.values for kernel in found},
        others=0,
        only_smaller=True,
    )


def _held(kernel: KernelSpectrum, rank: Rank | None) -> int:
    """Returns the number of weights of a kernel at a rank."""
    return kernel.form.full if rank is None else kernel.form.weights(rank)


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table)]
    return [
        "  ".join(
            cell.ljust(width) if index in (0, 1, 4) or len(row) < 5 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in table
    ]
