"""The part of `model.summary()` that is about ranks."""

import keras
import rich.box
from absl import logging
from rich.console import Console
from rich.table import Table

from keras_lowrank.layers.low_rank_layer import find_built_layers
from keras_lowrank.reporting.compression import count_weights


def print_ranks(model, line_length=None, print_fn=None):
    """Prints a table of the low-rank layers: kernel, rank, weights, and how many are saved.

    Keras's own table has no room for it: a layer can tell its name, output shape and number of
    parameters there, and nothing else.

    Args:
        model: `LowRankModel`. A layer that is not built yet is left out.
        line_length: int or None, the width of the table.
        print_fn: callable that takes the text, or None to print as Keras does: to the console, or
            to the log where `keras.config.disable_interactive_logging` is in force.
    """
    layers = {path: layer.factors for path, layer in find_built_layers(model).items()}
    if not layers or not model.built:
        return
    table = Table(box=rich.box.SIMPLE_HEAD, width=line_length)
    table.add_column("Low-rank layer", overflow="fold")
    for name in ("Kernel", "Rank", "Weights", "Saved"):
        table.add_column(name, justify="right")
    for path, factors in layers.items():
        n, m, rank = factors.n, factors.m, factors.rank
        saved = 1.0 - rank * (n + m) / (n * m)
        cells = f"{n} x {m}", f"{rank:,}", f"{rank * (n + m):,}", f"{saved:.2%}"
        table.add_row(rich.markup.escape(path), *cells)
    total = count_weights(model)
    saved = f"{total.saved(total.factored):.2%}"
    table.add_section()
    table.add_row("all weights of the model", f"{total.full:,}", "", f"{total.factored:,}", saved)
    if print_fn is None and keras.config.is_interactive_logging_enabled():
        Console(highlight=False).print(table)
        return
    console = Console(highlight=False, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    (print_fn or logging.info)(capture.get())
