"""The pages: every public name, link and command in them is there, and the site builds."""

import doctest
import functools
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import types

import pytest
from test_public_names import MODULES

from keras_lowrank.command_line import main

ROOT = pathlib.Path(__file__).parent.parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks/README.md",
    ROOT / "saved_models/digits/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/api").glob("*.md")),
    *sorted((ROOT / "docs/guides").glob("*.py")),
]
every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def resolved(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_every_public_name_has_a_place_in_the_api_pages():
    text = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    paths = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    shown = {id(resolved(path)) for path in paths}
    assert len(shown) == len(paths)
    for module, contents in MODULES.items():
        for name in contents.__all__:
            public = getattr(contents, name)
            assert isinstance(public, types.ModuleType) or id(public) in shown, f"{module}.{name}"


def test_every_public_name_has_an_example():
    find = doctest.DocTestFinder().find
    for module, contents in MODULES.items():
        for name in contents.__all__:
            public = getattr(contents, name)
            if isinstance(public, types.ModuleType) or getattr(public, "_is_protocol", False):
                continue  # nothing to call
            assert any(one.examples for one in find(public, name)), f"{module}.{name}"


@every_page
def test_links_lead_to_what_is_there(page):
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target), link


@functools.cache
def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


def commands(page, start):
    """The rest of every command that starts so: of lines of code, and of code in a line."""
    text = re.sub(r"\\\n#?\s*", "", page.read_text())
    found = re.findall(rf"^(?:#?    |\| .*`)?{start}([^`\n]*)|`{start}([^`]*)`", text, re.MULTILINE)
    return [shlex.split("".join(rest), comments=True) for rest in found]


@functools.cache
def flags_of(program):
    """The flags of a program, and of the modules beside it that it imports."""
    source = program.read_text()
    found = set(re.findall(r'(?i:define)_\w+\(\s*"(\w+)"', source))
    for name in re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE):
        beside = program.parent / f"{name}.py"
        if beside.is_file():
            found |= flags_of(beside)
    return found


@every_page
def test_programs_and_their_flags_are_there(page):
    for name, *arguments in commands(page, r"python (?=examples/|benchmarks/|tests/)"):
        assert (ROOT / name).is_file(), name
        known = flags_of(ROOT / name) | {"flagfile", "help"}
        for flag in (one[2:].partition("=")[0] for one in arguments if one.startswith("--")):
            assert flag in known or flag.removeprefix("no") in known, f"{name} --{flag}"
        for path in arguments:
            assert not path.startswith(("examples/", "docs/")) or (ROOT / path).is_file(), path


@every_page
def test_commands_of_the_package_and_their_options_are_there(page, capsys):
    for command, *arguments in commands(page, "python -m keras_lowrank "):
        if command == "--help":
            continue
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0, command
        known = capsys.readouterr().out
        for option in (one.partition("=")[0] for one in arguments if one.startswith("--")):
            assert re.search(rf"{option}\b", known), f"{command} {option}"


@every_page
def test_targets_of_make_are_there(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:`|^    )make ([a-z-]+)", page.read_text(), re.MULTILINE)
    assert targets.issuperset(named)


PROGRAMS = {
    rest[0] for page in PAGES for rest in commands(page, r"python (?=examples/|benchmarks/)")
}


# Every program in a process of its own, which has the large packages already.
ASK_ALL = """
import os, runpy, sys
import keras_lowrank, matplotlib.pyplot, sklearn.datasets, tensorflow_datasets

for program in sys.argv[1:]:
    sys.stdout.flush()
    if not os.fork():
        sys.argv = [program, "--help"]
        sys.path[0] = os.path.dirname(program)
        runpy.run_path(program, run_name="__main__")
    os.wait()
    print("end of", program, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs the programs in forks")
def test_the_help_of_every_program_runs():
    pytest.importorskip("tqdm", reason="programs need the extra `examples`")
    run = subprocess.run(
        [sys.executable, "-c", ASK_ALL, *sorted(PROGRAMS)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    asked = iter(run.stdout.splitlines())
    for program in sorted(PROGRAMS):
        shown = "\n".join(iter(functools.partial(next, asked), f"end of {program}"))
        assert "flags:" in shown, f"{program}: {shown}{run.stderr}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for needed in ("mkdocs", "material", "mkdocs_jupyter", "mkdocstrings"):
        pytest.importorskip(needed, reason="the site needs the extra `docs`")
    environment = {**os.environ, "DOCS_EXECUTE": "false", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    for page in PAGES:
        path = page.relative_to(ROOT).as_posix().removeprefix("docs/")
        path = re.sub(r"README\.\w+$", "index.html", path)
        assert (tmp_path / "site" / path).with_suffix(".html").is_file(), path
    layers = (tmp_path / "site/api/layers.html").read_text()
    assert layers.count("&gt;&gt;&gt; ") > 10  # the examples of docstrings, as code
    for guide in (ROOT / "docs/guides").glob("*.py"):
        page = tmp_path / f"site/guides/{guide.stem}.html"
        assert f'href="{guide.stem}.ipynb"' in page.read_text()
        first, *_ = json.loads(page.with_suffix(".ipynb").read_text())["cells"]
        assert "pip install" in "".join(first["source"])  # a notebook may open elsewhere
