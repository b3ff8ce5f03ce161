"""Programs of the examples inside of the tests, and their flags."""

import contextlib
import importlib
import pathlib
import re
import sys

import pytest
from absl import flags

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


@contextlib.contextmanager
def imported(name, *with_flags):
    """A module of the examples, whose flags stand in for those of the same names elsewhere.

    Args:
        name: str, the module.
        with_flags: str, those that it imports and that define flags too.
    """
    pytest.importorskip("rich", reason="the examples need the packages in the extra `examples`")
    modules = [name, *with_flags]
    source = "".join((EXAMPLES / f"{module}.py").read_text() for module in modules)
    names = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source))
    others = {flag: flags.FLAGS[flag] for flag in names if flag in flags.FLAGS}
    held = {module: sys.modules.pop(module) for module in modules if module in sys.modules}
    for flag in others:
        delattr(flags.FLAGS, flag)
    flags.FLAGS.mark_as_parsed()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(EXAMPLES))
            yield importlib.import_module(name)
    finally:  # a test that fails leaves the flags of all others as they were
        for module in modules:
            sys.modules.pop(module, None)
        sys.modules.update(held)
        for flag in names.intersection(flags.FLAGS):
            delattr(flags.FLAGS, flag)
        for flag, other in others.items():
            flags.FLAGS[flag] = other
