"""The table of ranks in `model.summary()`."""

from collections.abc import Callable

import keras
import rich.box
from absl import logging
from rich.console import Console
from rich.table import Table

from keras_lowrank.layers.find_layers import find_built_layers
from keras_lowrank.reporting.compression import count_weights

COLUMNS = ("Kernel", "Rank", "Weights", "Saved")


def rank_rows(model: keras.Model) -> list[tuple[str, str, str, str, str]]:
    """Returns, for each built low-rank layer, its path and the cells of `COLUMNS`."""
    table = []
    for path, layer in find_built_layers(model).items():
        n, m, rank = layer.factors.n, layer.factors.m, layer.factors.rank
        saved = 1.0 - rank * (n + m) / (n * m)
        table.append((path, f"{n} x {m}", f"{rank:,}", f"{rank * (n + m):,}", f"{saved:.2%}"))
    return table


def print_ranks(
    model: keras.Model,
    line_length: int | None = None,
    print_fn: Callable[[str], object] | None = None,
) -> None:
    """Prints a table of the built low-rank layers: kernel, rank, weights, and the share saved.

    A table of its own: Keras's has no column for a rank.

    Args:
        model: `LowRankModel`.
        line_length: int or None, the width of the table.
        print_fn: callable that takes the text, or None to print as Keras does: to the console, or
            to the log after `keras.config.disable_interactive_logging()`.
    """
    rows = rank_rows(model)
    if not rows or not model.built:
        return
    table = Table(box=rich.box.SIMPLE_HEAD, width=line_length)
    table.add_column("Low-rank layer", overflow="fold")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for path, *cells in rows:
        table.add_row(rich.markup.escape(path), *cells)
    total = count_weights(model)
    share = f"{total.saved(total.factored):.2%}"
    table.add_section()
    table.add_row("all weights of the model", f"{total.full:,}", "", f"{total.factored:,}", share)
    if print_fn is None and keras.config.is_interactive_logging_enabled():
        Console(highlight=False).print(table)
        return
    console = Console(highlight=False, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    (print_fn or logging.info)(capture.get())
