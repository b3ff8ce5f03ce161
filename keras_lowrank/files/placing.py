"""Writing a file or a folder elsewhere, and moving it into place in one step."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import tensorflow as tf

from keras_lowrank.error_reason import reason


@contextlib.contextmanager
def placed(target: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """Yields a path to write to, and moves it to `target` in one step on success.

    Args:
        target: `pathlib.Path`, of a file or a folder.
        overwrite: bool, whether to replace what is at `target`. A failure leaves that as it was.

    Yields:
        `pathlib.Path` in a new temporary folder (`TMPDIR`), which is deleted afterwards. A process
        that is killed leaves nothing beside `target`.

    Raises:
        FileExistsError: something is at `target`, and `overwrite` is False.
        OSError: the folder is not writable, or the disk is full.
    """
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"`filepath` exists. Pass overwrite=True to replace it. Received: {target}"
        )
    with disk_errors(target):
        _check_writable(target.parent)
        folder = tempfile.TemporaryDirectory(prefix="export-")
    with folder:
        made = pathlib.Path(folder.name) / target.name
        yield made
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _put_in_place(made, target)


def placed_beside(
    target: pathlib.Path, argument: str, path: str | os.PathLike | None, overwrite: bool
) -> contextlib.AbstractContextManager[pathlib.Path | None]:
    """`placed` for a file about what is at `target`.

    Args:
        target: `pathlib.Path`, of a file or a folder.
        argument: str, what the user's argument for the path is called.
        path: path, or None for no such file: then the context yields None.
        overwrite: bool, as in `placed`.

    Raises:
        ValueError: the path is `target`, or inside of it.
    """
    if path is None:
        return contextlib.nullcontext()
    beside = pathlib.Path(path)
    if target.resolve() in (beside.resolve(), *beside.resolve().parents):
        raise ValueError(
            f"`{argument}` needs a path outside of the export. "
            f"Received: {argument}={str(path)!r}, filepath={str(target)!r}"
        )
    return placed(beside, overwrite)


@contextlib.contextmanager
def disk_errors(target: pathlib.Path) -> Iterator[None]:
    """Makes the errors of code that writes `target` say what to do. That code must only write."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(
            f"{target} could not be written; what was there is unchanged. Choose a folder that is "
            f"writable, with room on its disk and in {tempfile.gettempdir()}. "
            f"Received: {reason(error)}"
        ) from error


def size(path: pathlib.Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _check_writable(folder: pathlib.Path) -> None:
    """Raises OSError where nothing can be written: before the work, not after it."""
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):  # has no name on systems that can do so
        pass


def _put_in_place(made: pathlib.Path, target: pathlib.Path) -> None:
    """Moves `made` to `target`, on the same disk or another."""
    try:
        _exchange(made, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A move is one step only within a disk: copy to the target's disk first.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
            copy = pathlib.Path(folder) / target.name
            if made.is_dir():
                shutil.copytree(made, copy)
            else:
                shutil.copy2(made, copy)
            _exchange(copy, target)


def _exchange(made: pathlib.Path, target: pathlib.Path) -> None:
    """Moves `made` to `target`; if that fails, puts back what was there."""
    if not target.is_dir():
        made.replace(target)
        return
    aside = made.with_name(f"{target.name}.previous")
    target.rename(aside)
    try:
        made.rename(target)
    except OSError:
        aside.rename(target)
        raise
