"""What a check found, rule by rule."""

import re

import numpy as np
import tensorflow as tf

# The relative difference that rounding may make, by the bytes of a number. It is enlarged where
# singular values are brought to one size, as Muon does.
_ALLOWED = {2: 0.1, 4: 1e-3, 8: 1e-10}


class Report:
    """The rules that were checked, and what was seen of each; `str` has one line a rule.

    As a context it ends in a ValueError if any rule is broken.

    Args:
        subject: str, what is checked.

    Attributes:
        kept: dict from each rule that holds to what was measured.
        broken: dict from each rule that does not to what was received.
    """

    def __init__(self, subject):
        self.subject = subject
        self.kept, self.broken = {}, {}

    def __str__(self):
        rules = (f"- {rule}" + (f" ({seen})" if seen else "") for rule, seen in self.kept.items())
        return "\n".join([f"{self.subject} keeps these rules:", *rules])

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Exception) and not isinstance(error, _Stop):
            self.broken["Nothing raises an error"] = _words(error)
        elif error is not None and not isinstance(error, _Stop):
            return  # such as an interrupt from the keyboard
        if self.broken:
            rules = "\n".join(f"- {rule}. Received: {seen}" for rule, seen in self.broken.items())
            cause = error.__cause__ if isinstance(error, _Stop) else error
            raise ValueError(f"{self.subject} breaks these rules:\n{rules}") from cause

    def check(self, holds, rule, received, measured=""):
        """Notes whether a rule holds; returns it as bool.

        Args:
            holds: bool.
            rule: str.
            received: str, what to say where it does not hold.
            measured: str, what to say where it does.
        """
        if holds:
            self.kept.setdefault(rule, measured)
        else:
            self.broken.setdefault(rule, received)
        return bool(holds)

    def need(self, holds, rule, received):
        """As `check`; without this rule, nothing else can be checked."""
        if not self.check(holds, rule, received):
            raise _Stop

    def attempt(self, rule, function):
        """What `function` returns; it is a rule that it raises nothing, needed as in `need`."""
        try:
            returned = function()
        except Exception as error:  # whatever the code of a user raises
            self.broken[rule] = _words(error)
            raise _Stop from error
        self.check(True, rule, "")
        return returned

    def close(self, rule, found, expected):
        """Checks that two tensors are equal up to rounding."""
        found, expected = (tf.convert_to_tensor(one) for one in (found, expected))
        if found.shape != expected.shape:
            received = f"shape {tuple(found.shape)} in place of {tuple(expected.shape)}"
            return self.check(False, rule, received)
        allowed = max(_ALLOWED[one.dtype.size] for one in (found, expected))
        found, expected = (np.asarray(tf.cast(one, tf.float64)) for one in (found, expected))
        size = max(np.linalg.norm(found), np.linalg.norm(expected))
        difference = np.linalg.norm(found - expected) / (size or 1.0)
        received = f"a relative difference of {difference:.1g}"
        return self.check(difference <= allowed, rule, received)


class _Stop(Exception):  # noqa: N818
    """The end of checks that have nothing left to go on."""


def _words(error):
    """An error on one line, without what Keras puts around it."""
    text = str(error).rpartition("Exception encountered: ")[2]
    text = " ".join("\n".join(text.split("\n\n")[:2]).split())
    return f"{type(error).__name__}: {re.sub(chr(27) + r'.[0-9;]*m', '', text)[:300]}"
