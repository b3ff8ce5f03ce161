"""The command `inspect`: a model's layers, and their ranks at several tolerances."""

import argparse
import functools
import pathlib

import rich.console
import rich.progress

from keras_lowrank.command_line import models, page
from keras_lowrank.convert import inspection

SUMMARY, USAGE, EXAMPLE = "print layers and ranks", "MODEL.keras", "model.keras"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `inspect` to its parser."""
    models.add_arguments(parser)
    add = parser.add_argument
    models.add_factorization(add)
    add(
        "--html",
        type=pathlib.Path,
        metavar="REPORT.html",
        help="also write a page with the spectra, and sliders over tolerances and budgets",
    )
    add("--overwrite", action="store_true", help="replace the page that is there")


def run(arguments: argparse.Namespace) -> None:
    """Prints a model's layers, their singular values, and their ranks at several tolerances."""
    if arguments.html and arguments.html.exists() and not arguments.overwrite:
        raise FileExistsError(f"The file exists; pass --overwrite to replace it: {arguments.html}")
    model = models.load(arguments)
    # On stderr, and only on a terminal: stdout may go into a file.
    console = rich.console.Console(stderr=True)
    bar = functools.partial(
        rich.progress.track, console=console, transient=True, disable=not console.is_terminal
    )
    found = list(inspection.kernels(model, arguments.factorization, bar))
    if not found:
        print(*inspection.reasons(model), sep="\n")
        raise ValueError(
            f"The model must have a layer that is, or can be, low-rank. Received: {arguments.model}"
        )
    print(*inspection.report(model, found), sep="\n")
    if arguments.html:
        form, target = arguments.factorization, arguments.html
        page.write(model, arguments.model, target, form, bar, arguments.overwrite)
        print(f"Wrote {arguments.html}, {arguments.html.stat().st_size:,} bytes.")
