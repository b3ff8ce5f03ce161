"""Warnings that point to the line of the user's that they are about."""

import sys
import warnings

_INSIDE = {"keras_lowrank", "keras", "tensorflow", "contextlib"}


def warn_user(text, category=UserWarning):
    """Warns as `warnings.warn` does, with the line that has called Keras, or this package."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
