"""The command `merge`: a model and a file of adapters to a plain model."""

import argparse

from keras_lowrank.adapters import load_adapters, merge_adapters
from keras_lowrank.command_line import models

SUMMARY, USAGE = "merge adapters into their base", "MODEL.keras ADAPTERS.h5 [NEW.keras]"
EXAMPLE = "model.keras a.adapters.h5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `merge` to its parser."""
    models.add_arguments(parser)
    parser.add_argument(
        "adapters", metavar="ADAPTERS.h5", help="the file that `Adapters.save` has written"
    )
    models.add_target(parser, "MODEL_merged.keras")


def run(arguments: argparse.Namespace) -> None:
    """Merges adapters into the model that they were trained beside: a plain Keras model again."""
    target = models.target_of(arguments, "merged")
    model = models.load(arguments)
    adapters = load_adapters(model, arguments.adapters)
    report = adapters.report()
    merge_adapters(model)
    models.save(model, target, arguments.overwrite)
    print(report)
    print(f"Wrote {target}, {target.stat().st_size:,} bytes.")
