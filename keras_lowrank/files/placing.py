"""Files that appear whole or not at all."""

import contextlib
import errno
import pathlib
import shutil
import tempfile

import tensorflow as tf

from keras_lowrank.error_reason import reason


@contextlib.contextmanager
def placed(target, overwrite):
    """While open, a path to write in place of `target`; on success it is moved there in one step.

    Args:
        target: `pathlib.Path`.
        overwrite: bool, whether something may be at `target`. After a failure it is as it was.

    Yields:
        `pathlib.Path`, in a new folder of the system's place for temporary files (`TMPDIR`), which
        is gone afterwards. A process that is killed leaves nothing beside `target`.

    Raises:
        FileExistsError: something is there, and `overwrite` is False.
        OSError: a folder that may not be written, a disk that is full.
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


@contextlib.contextmanager
def disk_errors(target):
    """Around what writes for `target` and computes nothing: its errors say what to do."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(
            f"{target} could not be written, and what was there is as it was. Choose a folder "
            f"that may be written, with room on its disk and in {tempfile.gettempdir()}. "
            f"Received: {reason(error)}"
        ) from error


def size(path):
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _check_writable(folder):
    """Raises OSError where nothing can be written: before the work, not after it."""
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):  # without a name where the system can
        pass


def _put_in_place(made, target):
    """Moves `made` to `target`, on whatever disk that is."""
    try:
        _exchange(made, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Only on the disk of the target is the last move one step.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
            near = pathlib.Path(folder) / target.name
            (shutil.copytree if made.is_dir() else shutil.copy2)(made, near)
            _exchange(near, target)


def _exchange(made, target):
    """Moves `made` to `target`; what was there comes back if that fails."""
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
