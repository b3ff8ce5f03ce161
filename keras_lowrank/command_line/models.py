"""The model that a command is given, and the classes and functions that it needs."""

import importlib
import pathlib
import re
import sys
import zipfile

import keras

from keras_lowrank.command_line.values import names


def add_arguments(parser):
    """Adds the arguments that all commands have: the model, and how it is loaded."""
    parser.add_argument("model", metavar="MODEL.keras", help="the model to read")
    parser.add_argument(
        "--import",
        dest="modules",
        type=names,
        default=[],
        metavar="A,B",
        help="modules that define the model's own classes and functions",
    )
    parser.add_argument(
        "--no_safe_mode",
        dest="safe_mode",
        action="store_false",
        help="load models with Python code in them, too (Lambda layers)",
    )


def load(arguments):
    """The model that the arguments name."""
    path = arguments.model
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no such file: {path}")
    if path.endswith(".keras") and not zipfile.is_zipfile(path):
        raise ValueError(
            f"The file is damaged, or was not written by Keras; copy or save it again: {path}"
        )
    own = _own_objects(arguments.modules)
    try:
        return keras.saving.load_model(
            path, custom_objects=own, compile=False, safe_mode=arguments.safe_mode
        )
    except Exception as error:  # Keras has many for a file that it cannot read, some of them long
        if missing := re.search(r"Could not locate (\w+ '[^']+')", str(error)):
            raise ValueError(
                f"{path} needs the {missing[1]}, which is not known here: pass --import=MODULE, "
                "the module that defines it."
            ) from error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} cannot be loaded as a Keras model; if it is damaged, copy or save it again. "
            f"{reason[:300]}"
        ) from error


def _own_objects(modules):
    """`{name: class or function}` of what the modules of --import define."""
    sys.path.insert(0, "")  # as `python -m` has it
    try:
        modules = [importlib.import_module(name) for name in modules]
    except ImportError as error:
        raise ValueError(f"--import must name modules that can be imported. {error}") from error
    finally:
        sys.path.pop(0)
    return {
        name: one
        for module in modules
        for name, one in vars(module).items()
        if getattr(one, "__module__", None) == module.__name__
    }
