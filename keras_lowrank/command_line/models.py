"""Loads the model of a command, with the user's own classes and functions, and writes its own."""

import argparse
import importlib
import pathlib
import re
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import keras

from keras_lowrank.command_line.values import names
from keras_lowrank.files.placing import disk_errors, placed
from keras_lowrank.layers.arguments import FACTORIZATIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of all commands: the model, and how to load it."""
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
        help="also load models that contain Python code (Lambda layers)",
    )


def load(arguments: argparse.Namespace) -> keras.Model:
    """Loads the model that the arguments name.

    Args:
        arguments: the parsed arguments of `add_arguments`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or needs a class or function that is unknown.
    """
    path = arguments.model
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no such file: {path}")
    if path.endswith(".keras") and not zipfile.is_zipfile(path):
        raise ValueError(
            "The model must be a file that Keras wrote. This one may be damaged: copy or save it "
            f"again. Received: {path}"
        )
    own = _own_objects(arguments.modules)
    try:
        return keras.saving.load_model(
            path, custom_objects=own, compile=False, safe_mode=arguments.safe_mode
        )
    except Exception as error:  # of many classes, some with long texts
        if missing := re.search(r"Could not locate (\w+ '[^']+')", str(error)):
            raise ValueError(
                f"{path} needs the unknown {missing[1]}. Pass --import=MODULE, the module that "
                "defines it."
            ) from error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} cannot be loaded as a Keras model. If it is damaged, copy or save it again. "
            f"{reason[:300]}"
        ) from error


def add_target(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the arguments of a command that writes a model: where to, and over what."""
    add = parser.add_argument
    add("target", metavar="NEW.keras", nargs="?", help=f"where to write; default: {default}")
    add("--overwrite", action="store_true", help="replace an existing file")


def add_factorization(add: Callable[..., object]) -> None:
    """Adds the argument for the form of the kernels of convolutions.

    Args:
        add: the `add_argument` of a parser or of a group.
    """
    add(
        "--factorization",
        choices=FACTORIZATIONS,
        default="matrix",
        help="the form of the kernels of convolutions: a matrix (kh kw c, f) or (kh c, kw f), or a "
        "Tucker-2 tensor, with one rank for the input and one for the output channels; default: "
        "matrix",
    )


def target_of(arguments: argparse.Namespace, kind: str) -> pathlib.Path:
    """The path to write to, checked before the work.

    Args:
        arguments: the parsed arguments of `add_arguments` and `add_target`.
        kind: str, the end of the name of a file that is written beside the model.

    Raises:
        ValueError: the path is no `.keras` file.
        FileExistsError: it exists, and is not to be replaced.
        FileNotFoundError: its folder does not exist.
    """
    beside = f"{pathlib.Path(arguments.model).with_suffix('')}_{kind}.keras"
    target = pathlib.Path(arguments.target or beside)
    if target.suffix != ".keras":
        raise ValueError(f"The output must end in .keras. Received: {target}")
    if target.exists() and not arguments.overwrite:
        raise FileExistsError(f"The output exists. Pass --overwrite to replace it: {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"The output's folder must exist. Received: {target.parent}")
    return target


def save(model: keras.Model, target: pathlib.Path, overwrite: bool) -> None:
    """Writes the file atomically."""
    with placed(target, overwrite) as made, disk_errors(target):
        model.save(made)


def _own_objects(names: list[str]) -> dict[str, Any]:
    """Returns the classes and functions that the modules of --import define, by name."""
    sys.path.insert(0, "")  # as with `python -m`
    try:
        modules = [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise ValueError(
            f"--import must name modules that can be imported. Received: {error}"
        ) from error
    finally:
        sys.path.pop(0)
    return {
        name: one
        for module in modules
        for name, one in vars(module).items()
        if getattr(one, "__module__", None) == module.__name__
    }
