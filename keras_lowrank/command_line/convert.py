"""The command `convert`: a Keras model to low-rank layers, or back."""

import argparse
import pathlib

import keras

from keras_lowrank.command_line import models
from keras_lowrank.command_line.values import names
from keras_lowrank.convert import from_keras, to_keras
from keras_lowrank.files.placing import disk_errors, placed

SUMMARY, USAGE = "convert to low-rank layers, or back", "MODEL.keras [NEW.keras]"
EXAMPLE = "model.keras --tolerance=0.1"
_RULES = ("rank", "tolerance", "energy", "budget")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convert` to its parser."""
    models.add_arguments(parser)
    add = parser.add_argument
    add(
        "target",
        metavar="NEW.keras",
        nargs="?",
        help="where to write; default: MODEL_low_rank.keras or MODEL_plain.keras",
    )
    add("--overwrite", action="store_true", help="replace an existing file")
    add = parser.add_argument_group(
        "to low-rank layers, with one of --rank, --tolerance, --energy and --budget"
    ).add_argument
    add("--rank", type=int, metavar="R", help="the rank of all layers")
    add("--tolerance", type=float, metavar="T", help="the relative error of each kernel")
    add("--energy", type=float, metavar="E", help="the fraction of each squared norm to keep")
    add("--budget", type=int, metavar="N", help="the weights of the whole model")
    add(
        "--include",
        type=names,
        metavar="A,B",
        help="the layers to convert, by name, path or pattern",
    )
    add("--exclude", type=names, metavar="A,B", help="the layers not to convert, in the same terms")
    add(
        "--no_only_smaller",
        dest="only_smaller",
        action="store_false",
        help="also convert layers whose factors are not smaller",
    )
    add = parser.add_argument_group("back to a plain Keras model").add_argument
    add(
        "--style",
        choices=["smaller", "factored", "merged"],
        help="what becomes of low-rank layers: two plain layers (factored), one (merged), or "
        "whichever has fewer weights (smaller)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Converts a Keras model to low-rank layers, or a low-rank model back to plain ones."""
    target = _target(arguments)
    model = models.load(arguments)
    rules = {name: getattr(arguments, name) for name in _RULES}
    if arguments.style is None:
        choice = {name: getattr(arguments, name) for name in ("include", "exclude", "only_smaller")}
        low = from_keras(model, **rules, **choice, verbose=True)
        print(low.compression())
        _save(low, target, arguments.overwrite)
    elif any(value is not None for value in rules.values()):
        raise ValueError(
            "--style converts back to plain layers and keeps the ranks: pass it without --rank, "
            "--tolerance, --energy and --budget."
        )
    else:
        _save(to_keras(model, arguments.style), target, arguments.overwrite)
    print(f"Wrote {target}, {target.stat().st_size:,} bytes.")


def _target(arguments: argparse.Namespace) -> pathlib.Path:
    """The path to write to, checked before the work."""
    kind = "low_rank" if arguments.style is None else "plain"
    beside = f"{pathlib.Path(arguments.model).with_suffix('')}_{kind}.keras"
    target = pathlib.Path(arguments.target or beside)
    if target.suffix != ".keras":
        raise ValueError(f"The output must end in .keras. Received: {target}")
    if target.exists() and not arguments.overwrite:
        raise FileExistsError(f"The output exists. Pass --overwrite to replace it: {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"The output's folder must exist. Received: {target.parent}")
    return target


def _save(model: keras.Model, target: pathlib.Path, overwrite: bool) -> None:
    """Writes the file atomically."""
    with placed(target, overwrite) as made, disk_errors(target):
        model.save(made)
