"""The result of a check, rule by rule."""

import re
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf

# The relative difference that rounding may cause, by the bytes of a number. Muon amplifies rounding
# because it gives all singular values one size.
_ALLOWED = {2: 0.1, 4: 1e-3, 8: 1e-10}


class Report:
    """The rules that were checked, with one line for each in `str`.

    As a context manager it raises a ValueError at the end if a rule is broken.

    Args:
        subject: str, what is checked.

    Attributes:
        subject: str, as the argument.
        kept: dict from each rule that holds to what was measured, a str.
        broken: dict from each broken rule to what was received, a str.

    Example:

    >>> report = diagnostics.check_layer(LowRankDense(3, rank=2), np.ones((2, 4)))
    >>> report.broken
    {}
    """

    subject: str
    kept: dict[str, str]
    broken: dict[str, str]

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.kept, self.broken = {}, {}

    def __str__(self) -> str:
        rules = (f"- {rule}" + (f" ({seen})" if seen else "") for rule, seen in self.kept.items())
        return "\n".join([f"{self.subject} keeps these rules:", *rules])

    def __enter__(self) -> "Report":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, _Stop):
            self.broken["Nothing raises an error"] = _words(error)
        elif error is not None and not isinstance(error, _Stop):
            return  # such as a KeyboardInterrupt
        if self.broken:
            rules = "\n".join(f"- {rule}. Received: {seen}" for rule, seen in self.broken.items())
            cause = error.__cause__ if isinstance(error, _Stop) else error
            raise ValueError(f"{self.subject} breaks these rules:\n{rules}") from cause

    def check(self, holds: bool, rule: str, received: str, measured: str = "") -> bool:
        """Records whether a rule holds.

        Args:
            holds: bool, whether it holds.
            rule: str, the rule.
            received: str, what was received, if it is broken.
            measured: str, what was measured, if it holds.

        Returns:
            bool, `holds`.
        """
        if holds:
            self.kept.setdefault(rule, measured)
        else:
            self.broken.setdefault(rule, received)
        return bool(holds)

    def need(self, holds: bool, rule: str, received: str) -> None:
        """Like `check`, but ends the whole check if the rule is broken."""
        if not self.check(holds, rule, received):
            raise _Stop

    def attempt(self, rule: str, function: Callable[[], Any]) -> Any:
        """Calls a function, with the rule that it raises nothing, as in `need`.

        Args:
            rule: str, the rule.
            function: callable without arguments.

        Returns:
            What the function returns.
        """
        try:
            returned = function()
        except Exception as error:  # any class, from the user's code
            self.broken[rule] = _words(error)
            raise _Stop from error
        self.check(True, rule, "")
        return returned

    def close(self, rule: str, found: Any, expected: Any) -> bool:
        """Checks that two tensors are equal up to rounding, as in `check`.

        Args:
            rule: str, the rule.
            found: tensor or array.
            expected: tensor or array.

        Returns:
            bool, whether they are equal.
        """
        found, expected = (tf.convert_to_tensor(one) for one in (found, expected))
        if found.shape != expected.shape:
            received = f"shape {tuple(found.shape)} in place of {tuple(expected.shape)}"
            return self.check(False, rule, received)
        allowed = max(_ALLOWED[one.dtype.size] for one in (found, expected))
        found, expected = (np.asarray(tf.cast(one, tf.float64)) for one in (found, expected))
        size = max(np.linalg.norm(found), np.linalg.norm(expected))
        difference = np.linalg.norm(found - expected) / (size or 1.0)
        received = f"a relative difference of {difference:.1g}"
        return self.check(bool(difference <= allowed), rule, received)


class _Stop(Exception):  # noqa: N818 (it is no error, but the way out of a check)
    """Ends a check early, after a rule that all others need."""


def _words(error: Exception) -> str:
    """The error on one line, without the text that Keras adds."""
    text = str(error).rpartition("Exception encountered: ")[2]
    text = " ".join("\n".join(text.split("\n\n")[:2]).split())
    return f"{type(error).__name__}: {re.sub(chr(27) + r'.[0-9;]*m', '', text)[:300]}"
