"""Checksums of weights files: HDF5, as Keras writes it, has none over its numbers."""

import os
import zlib
from typing import Any

import h5py

_NAME = "keras_lowrank_crc32"


def seal(path: str | os.PathLike[str]) -> None:
    """Writes a checksum into a weights file that has none; leaves other files as they are."""
    if not _is_local_weights_file(path):
        return
    with h5py.File(path, "r+") as file:
        if _NAME not in file.attrs:
            seal_file(file, os.path.getsize(path))


def verify(path: str | os.PathLike[str]) -> None:
    """Checks the contents of a weights file against its checksum, where it has one.

    Raises:
        ValueError: they differ.
    """
    if not _is_local_weights_file(path):
        return
    with h5py.File(path, "r") as file:
        if _NAME in file.attrs:
            verify_file(file, path)


def seal_file(file, size):
    """Writes the checksum of an open file of `size` bytes into it."""
    file.attrs[_NAME] = _checksum(file, size)


def verify_file(file, path):
    """Raises ValueError unless an open file, that at `path`, has the checksum of its contents."""
    if int(file.attrs.get(_NAME, -1)) != _checksum(file, os.path.getsize(path)):
        raise ValueError(
            "The contents of a weights file must have the checksum that was written with them: "
            f"the file is damaged. Received: filepath={path}"
        )


def _is_local_weights_file(path: str | os.PathLike[str]) -> bool:
    return str(path).endswith(".weights.h5") and os.path.isfile(path)


def _checksum(file: h5py.File, size: int) -> int:
    """Returns the CRC32 over names, types, shapes and numbers of a file of `size` bytes."""
    found: list[tuple[str, Any]] = []
    file.visititems(lambda name, item: found.append((name, item)))
    total = 0
    for name, item in found:
        label = [name]
        if isinstance(item, h5py.Dataset):
            # A crafted file may declare more than the memory holds, or point to another file.
            if item.external or item.is_virtual or item.nbytes > size:
                raise ValueError(
                    "A data set of a weights file must lie in the file, as Keras writes it. "
                    f"Received: {name!r} of shape {item.shape} in {file.filename}, a file of "
                    f"{size} bytes"
                )
            label += [str(item.dtype), str(item.shape)]
        total = zlib.crc32(" ".join(label).encode(), total)
        if isinstance(item, h5py.Dataset):
            total = zlib.crc32(item[()].tobytes(), total)
    return total
