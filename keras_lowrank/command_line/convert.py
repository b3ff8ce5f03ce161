"""The command `convert`: a Keras model to low-rank layers, or back."""

import argparse

from keras_lowrank.command_line import models
from keras_lowrank.command_line.values import names
from keras_lowrank.convert import from_keras, to_keras

SUMMARY, USAGE = "convert to low-rank layers, or back", "MODEL.keras [NEW.keras]"
EXAMPLE = "model.keras --tolerance=0.1"
_RULES = ("rank", "tolerance", "energy", "budget")
_CHOICES = ("include", "exclude", "factorization", "only_smaller")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convert` to its parser."""
    models.add_arguments(parser)
    models.add_target(parser, "MODEL_low_rank.keras or MODEL_plain.keras")
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
    models.add_factorization(add)
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
    target = models.target_of(arguments, "low_rank" if arguments.style is None else "plain")
    model = models.load(arguments)
    rules = {name: getattr(arguments, name) for name in _RULES}
    if arguments.style is None:
        choice = {name: getattr(arguments, name) for name in _CHOICES}
        low = from_keras(model, **rules, **choice, verbose=True)
        print(low.compression())
        models.save(low, target, arguments.overwrite)
    elif any(value is not None for value in rules.values()):
        raise ValueError(
            "--style converts back to plain layers and keeps the ranks: pass it without --rank, "
            "--tolerance, --energy and --budget."
        )
    else:
        models.save(to_keras(model, arguments.style), target, arguments.overwrite)
    print(f"Wrote {target}, {target.stat().st_size:,} bytes.")
