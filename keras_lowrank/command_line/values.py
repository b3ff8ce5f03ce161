"""Parses the values of arguments: names, numbers, shapes, and files of arrays."""

import argparse
import os
import pathlib
import zipfile

import numpy as np


def names(text: str) -> list[str]:
    """Parses a comma-separated list of names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def fraction(text: str) -> float:
    """Parses a number from 0 to 1.

    Raises:
        ArgumentTypeError: it is out of range.
    """
    number = float(text)
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1. Received: {text}")
    return number


def shape(text: str) -> tuple[str | None, list[int]]:
    """Parses a shape such as 64, 224,224,3 or NAME=64.

    Returns:
        `(name, extents)`; the name may be None.

    Raises:
        ArgumentTypeError: an extent is not a whole number.
    """
    name, _, extents = text.rpartition("=")
    try:
        return name or None, [int(one) for one in extents.split(",") if one]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            "must be comma-separated whole numbers, after NAME= for a model with several inputs. "
            f"Received: {text}"
        ) from error


def arrays(
    path: str | os.PathLike | None, *suffixes: str
) -> np.ndarray | dict[str, np.ndarray] | None:
    """Reads an .npy or .npz file.

    Args:
        path: str or path of the file, or None.
        *suffixes: the allowed endings.

    Returns:
        The array of an .npy file, the arrays of an .npz file by name, or None without a path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the ending is not allowed, or the file cannot be read.
    """
    if path is None:
        return None
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no such file: {path}")
    if pathlib.Path(path).suffix not in suffixes:
        raise ValueError(f"The file must end in {' or '.join(suffixes)}. Received: {path}")
    try:
        loaded = np.load(path)  # without pickles, which could run code
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        suffix = pathlib.Path(path).suffix
        raise ValueError(
            f"{path} cannot be read as NumPy's {suffix} file. Received: {error}"
        ) from error
