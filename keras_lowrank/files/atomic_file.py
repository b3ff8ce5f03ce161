"""A file that is there whole, or not at all."""

import os
import pathlib


def write_atomically(path, write, keep_as=None):
    """Replaces the file at `path` by a new one, so that a crash at any moment leaves one of both.

    The new file is written beside the old one, forced to the disk, and renamed; then the folder,
    which holds the names, is forced to the disk.

    Args:
        path: path of the file, on a local file system. Its folder is made where it is missing.
        write: callable that writes the contents to the binary file that it is given.
        keep_as: path in the same folder under which the old file stays, or None to lose it.
            Between the two renamings only that one is there.
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
