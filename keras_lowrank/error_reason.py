"""The reason of an error in one line, for a message that quotes it."""

import re

# Terminal colours of Keras, and node names of TensorFlow's graphs.
_NOISE = re.compile(r"\x1b\[\d*m|\{\{.*\}\}\s*")


def reason(error: BaseException) -> str:
    """Returns the first line of an error; where Keras wraps an error of a layer, the inner one.

    Args:
        error: the exception.

    Returns:
        At most 300 characters; the name of the exception's class where it has no text.
    """
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    head, *inside = (
        _NOISE.sub("", text).partition("\n\nArguments received")[0].split("in user code:")
    )
    lines = [line.strip() for line in head.splitlines() if line.strip()]
    if lines and lines[0].startswith("Exception encountered"):
        lines = [" ".join(lines[:2])]
    if inside:  # a traceback, which ends with the error
        lines = [" ".join([*lines[:1], inside[-1].strip().splitlines()[-1].strip()])]
    return lines[0][:300] if lines else type(error).__name__
