"""Plots of ranks and singular values."""

from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_lowrank.callbacks.rank_history import RankHistory
from keras_lowrank.layers.find_layers import find_built_layers

if TYPE_CHECKING:  # an optional package
    from matplotlib.axes import Axes


def plot_ranks(history: RankHistory, ax: "Axes | None" = None) -> "Axes":
    """Plots the rank of every layer against the epochs or steps of a `RankHistory`.

    Args:
        history: `RankHistory` with at least one record.
        ax: `matplotlib.axes.Axes` to plot into, or None for a new figure.

    Returns:
        The axes. `ax.figure.savefig(path)` writes a file.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `history` is not a `RankHistory`, or has no record.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(4, rank=2)(inputs))
    >>> model.compile("sgd", "mse", run_eagerly=True)
    >>> history = callbacks.RankHistory()
    >>> losses = model.fit(np.ones((4, 8)), np.ones((4, 4)), verbose=0, callbacks=[history])
    >>> callbacks.plot_ranks(history).get_ylabel()
    'rank'
    """
    if not isinstance(history, RankHistory):
        raise ValueError(
            "`history` must be a `RankHistory` that was passed to `fit` as a callback. "
            f"Received: {history!r}"
        )
    if not history.epochs:
        raise ValueError(
            "`history` must have a record. Pass it to `fit` as a callback first. "
            "Received: an empty history"
        )
    ax = _axes(ax)
    by_epoch = history.freq == "epoch"
    times = np.asarray(history.epochs) + 1 if by_epoch else history.steps
    for path, ranks in history.ranks.items():
        ax.plot(times, ranks, marker="." if len(times) < 50 else None, label=path)
    ax.locator_params(axis="x", integer=True)
    ax.set(xlabel="epoch" if by_epoch else "step", ylabel="rank")
    ax.set_ylim(bottom=0)
    ax.legend()
    return ax


def plot_spectrum(
    model: keras.Model, layers: list[str] | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Plots the singular values of every low-rank kernel, descending, on a logarithmic axis.

    Args:
        model: built `keras.Model` with low-rank layers.
        layers: list of paths, as in `LowRankModel.ranks`, or None for all layers.
        ax: `matplotlib.axes.Axes` to plot into, or None for a new figure.

    Returns:
        The axes. `ax.figure.savefig(path)` writes a file.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a path is not one of a built low-rank layer.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = LowRankModel(inputs, LowRankDense(4, rank=2)(inputs))
    >>> callbacks.plot_spectrum(model).get_ylabel()
    'singular value'
    """
    found = find_built_layers(model)
    unknown = set(layers or ()) - set(found)
    if unknown:
        raise ValueError(
            f"`layers` must be paths of built low-rank layers: {sorted(found)}. "
            f"Received: {sorted(unknown)}"
        )
    ax = _axes(ax)
    for path in found if layers is None else layers:
        values = found[path].factors.singular_values()
        ax.semilogy(np.arange(1, len(values) + 1), values, marker=".", label=path)
    ax.locator_params(axis="x", integer=True)
    ax.set(xlabel="index", ylabel="singular value")
    ax.legend()
    return ax


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib: `pip install matplotlib`, or 'keras_lowrank[plots]'."
        ) from error
    return plt.subplots(layout="constrained")[1]
