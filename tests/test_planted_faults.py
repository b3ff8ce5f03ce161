"""The quick tests notice each of the faults in `planted/`, planted one at a time."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from planted import files, numerics, training

ROOT = pathlib.Path(__file__).parent.parent
FAULTS = {**numerics.FAULTS, **training.FAULTS, **files.FAULTS}
every_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of all that a test reads, with no fault in it."""
    folder = tmp_path_factory.mktemp("sources")
    unread = shutil.ignore_patterns("__pycache__", "out")
    for name in ("keras_lowrank", "tests", "examples", "saved_models"):
        shutil.copytree(ROOT / name, folder / name, ignore=unread)
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def copy(sources, tmp_path):
    return pathlib.Path(shutil.copytree(sources, tmp_path / "copy"))


def run_tests(folder, *arguments):
    """Runs quick tests in a copy; returns the exit code of pytest, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout + done.stderr


@every_fault
def test_a_fault_can_be_planted(fault):
    """Where a line was reworded, the fault is to be reworded, too."""
    source = (ROOT / "keras_lowrank" / fault.file).read_text()
    assert source.count(fault.right) == 1, f"{fault.right!r} in {fault.file}"
    tests = (ROOT / "tests" / fault.tests).read_text()
    chosen = set(fault.chosen.split()) - {"and", "or", "not"}
    assert all(word in tests for word in chosen), f"{fault.chosen!r} in {fault.tests}"


@pytest.mark.slow
def test_it_is_the_copy_that_is_tested(copy):
    (copy / "keras_lowrank" / "__init__.py").write_text("raise ImportError('the copy')")
    code, output = run_tests(copy, "tests/manifold/test_linear_algebra.py")
    assert code != 0 and "the copy" in output


@pytest.mark.slow
def test_without_a_fault_they_pass(sources):
    code, output = run_tests(sources, *sorted({f"tests/{one.tests}" for one in FAULTS.values()}))
    assert code == 0, output[-2000:]


@pytest.mark.slow
@every_fault
def test_a_fault_is_noticed(fault, copy):
    path = copy / "keras_lowrank" / fault.file
    path.write_text(path.read_text().replace(fault.right, fault.wrong))
    chosen = ["-k", fault.chosen] if fault.chosen else []
    code, output = run_tests(copy, f"tests/{fault.tests}", *chosen)
    # 0: all pass; above 1: nothing was chosen, or it cannot be run at all.
    assert code == 1, output[-2000:]
