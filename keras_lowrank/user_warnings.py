"""Warnings that point to the user's line that caused them."""

import sys
import warnings

_INSIDE = {"keras_lowrank", "keras", "tensorflow", "contextlib"}


def warn_user(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns as `warnings.warn` does, with the line that called Keras or this package.

    Args:
        text: str, the warning.
        category: class of the warning. Defaults to `UserWarning`.
    """
    level, frame = 1, sys._getframe(0)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
