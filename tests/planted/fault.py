"""What a planted fault is."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A change of the source, and who has to notice.

    Attributes:
        file: str, in `keras_lowrank/`.
        right: str, what stands there, once.
        wrong: str, what stands there instead.
        tests: str, a file in `tests/`.
        chosen: str, an expression that chooses tests of that file, as `pytest -k` reads it.
    """

    file: str
    right: str
    wrong: str
    tests: str
    chosen: str = ""
