"""Files that appear whole or not at all."""

import contextlib
import pathlib
import tempfile

import tensorflow as tf


@contextlib.contextmanager
def placed(target, overwrite, beside=()):
    """While open, a path to write in place of `target`; on success it is moved there in one step.

    Args:
        target: `pathlib.Path`.
        overwrite: bool, whether something may be at `target`. After a failure it is as it was.
        beside: names of further files, written beside the path that is yielded and moved after it.

    Yields:
        `pathlib.Path`, in a new folder beside `target`, which is gone afterwards.

    Raises:
        FileExistsError: something is there, and `overwrite` is False.
        OSError: a folder that may not be written, a disk that is full.
    """
    for name in (target.name, *beside):
        if (target.parent / name).exists() and not overwrite:
            raise FileExistsError(
                "`filepath` exists. Pass overwrite=True to replace it. "
                f"Received: {target.parent / name}"
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last move is a rename on one file system.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
            made = pathlib.Path(folder) / target.name
            yield made
            _put_in_place(made, target, pathlib.Path(folder) / "previous")
            for name in beside:
                made.with_name(name).replace(target.with_name(name))
    except (OSError, tf.errors.OpError) as error:
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(
            f"{target} could not be written, and what was there is as it was. Choose a folder "
            f"that may be written, with room on its disk. Received: {_reason(error)}"
        ) from error


def size(path):
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _reason(error):
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    line = next(iter(text.splitlines()), type(error).__name__)
    return line.rpartition("}} ")[2][:300]  # without the node of TensorFlow's graph


def _put_in_place(made, target, aside):
    """Moves `made` to `target`; what was there comes back if that fails."""
    if not target.exists():
        made.rename(target)
        return
    target.rename(aside)
    try:
        made.rename(target)
    except OSError:
        aside.rename(target)
        raise
