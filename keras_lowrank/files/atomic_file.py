"""Writing a file whole or not at all."""

import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO


def write_atomically(
    path: str | os.PathLike[str],
    write: Callable[[BinaryIO], object],
    keep_as: str | os.PathLike[str] | None = None,
) -> None:
    """Replaces the file at `path`; a crash at any moment leaves the old file or the new one.

    Writes the new file beside the old one, syncs it to the disk, and renames it. Then syncs the
    folder, which holds the names.

    Args:
        path: path of the file, on a local file system. A missing folder is made.
        write: callable that writes the contents to a binary file.
        keep_as: path in the same folder under which the old file stays, or None to lose it.
            Between the two renames only that file is there.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    if keep_as is not None and path.exists():
        os.replace(path, keep_as)
    os.replace(part, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
