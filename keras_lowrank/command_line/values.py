"""What the arguments of commands are read as: names, shapes, and arrays in files."""

import argparse
import pathlib
import zipfile

import numpy as np


def names(text):
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def share(text):
    """A number from 0 to 1."""
    number = float(text)
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1. Received: {text}")
    return number


def shape(text):
    """`(name or None, list of int)` of 64, of 224,224,3, or of NAME=64."""
    name, _, extents = text.rpartition("=")
    try:
        return name or None, [int(one) for one in extents.split(",") if one]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            "must be whole numbers with commas, after NAME= where the model has several inputs. "
            f"Received: {text}"
        ) from error


def arrays(path, *suffixes):
    """The array of an .npy file, or the arrays of an .npz file by name; None for no path."""
    if path is None:
        return None
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no such file: {path}")
    if pathlib.Path(path).suffix not in suffixes:
        raise ValueError(f"The file must be NumPy's {' or '.join(suffixes)}. Received: {path}")
    try:
        loaded = np.load(path)  # without pickles, which would run code
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        suffix = pathlib.Path(path).suffix
        raise ValueError(f"{path} cannot be read as NumPy's {suffix}. {error}") from error
