"""Why something failed, in one line."""

import re

# Of TensorFlow and Keras: terminal colours, and the node of a graph.
_NOISE = re.compile(r"\x1b\[\d*m|\{\{.*\}\}\s*")


def reason(error):
    """The first line of an error; behind that of Keras on a layer, the error in the layer."""
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
