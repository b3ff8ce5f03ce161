"""What is published: a wheel and an sdist that are well-formed and hold all that is needed."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import keras_lowrank

ROOT = pathlib.Path(__file__).parent.parent


def python(*arguments, **options):
    run = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        **options,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist of a copy without anything that git ignores."""
    pytest.importorskip("build", reason="a release is made with the package `build`")
    folder = tmp_path_factory.mktemp("release")
    listed = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    python("-m", "build", "--outdir", folder / "dist", folder / "source")
    return folder / "dist"


@pytest.mark.slow
def test_wheel_and_sdist_pass_the_check_of_the_index(built):
    pytest.importorskip("twine", reason="a release is checked with twine")
    version = keras_lowrank.__version__
    assert sorted(file.name for file in built.iterdir()) == [
        f"keras_lowrank-{version}-py3-none-any.whl",
        f"keras_lowrank-{version}.tar.gz",
    ]
    python("-m", "twine", "check", "--strict", *built.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".whl", ".tar.gz"])
def test_what_is_installed_runs_the_ten_lines(built, suffix, tmp_path):
    pytest.importorskip("sklearn", reason="the ten lines need the extra `examples`")
    (archive,) = built.glob(f"*{suffix}")
    python("-m", "pip", "install", "--no-deps", "--target", tmp_path / "installed", archive)
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "ten_lines.py").write_text(lines)
    (tmp_path / "where.py").write_text("import keras_lowrank; print(keras_lowrank.__file__)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    where = python("where.py", cwd=tmp_path, env=environment)
    assert where.startswith(str(tmp_path))
    python("ten_lines.py", cwd=tmp_path, env=environment)
    assert (tmp_path / "digits.tflite").stat().st_size > 1_000


def test_the_version_is_in_one_place_and_the_pages_have_it():
    assert not re.search(r'^version = "', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"version: {keras_lowrank.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    changes = (ROOT / "CHANGELOG.md").read_text()
    newest, *_ = re.findall(r"^## (\S+) - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    assert newest == keras_lowrank.__version__
