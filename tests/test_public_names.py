"""What is public is there with a docstring, and is all that examples, benchmarks and guides use."""

import ast
import importlib
import inspect
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BELOW = """
    adapters callbacks convert diagnostics export integrators kernels layers manifold optimizers
"""
NAMES = ["keras_lowrank", *(f"keras_lowrank.{name}" for name in BELOW.split())]
MODULES = {name: importlib.import_module(name) for name in NAMES}
PROGRAMS = [
    *ROOT.glob("examples/*.py"),
    *ROOT.glob("benchmarks/*.py"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("docs/guides/*.py"),
    ROOT / "README.md",
]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_there_and_documented(module):
    names = MODULES[module].__all__
    assert len(set(names)) == len(names)
    for name in names:
        public = getattr(MODULES[module], name)
        assert inspect.getdoc(public), f"{module}.{name}"


def code(path):
    text = path.read_text()
    return (
        text if path.suffix == ".py" else "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    )


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_programs_and_guides_use_public_names_alone(path):
    for node in ast.walk(ast.parse(code(path))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras_lowrank"):
            public = getattr(MODULES.get(node.module), "__all__", ())
            assert {one.name for one in node.names} <= set(public), ast.unparse(node)
        if isinstance(node, ast.Import):
            ours = {one.name for one in node.names if one.name.startswith("keras_lowrank")}
            assert ours <= set(MODULES), ast.unparse(node)
        if isinstance(node, ast.Attribute):
            owner, name = ast.unparse(node.value), node.attr
            if owner in MODULES:
                assert name in (*MODULES[owner].__all__, "__version__"), ast.unparse(node)
