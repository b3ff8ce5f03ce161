"""Imports of the package go one way: down the list of its folders, and in no circle of files.

Imports for annotations alone (`if TYPE_CHECKING`) do not count: nothing runs them.
"""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "keras_lowrank"

# From the bottom up. Parts in one line do not know of each other.
LEVELS = [
    ("error_reason", "user_warnings", "keras_internals", "keras_graphs", "outlined", "version"),
    ("files",),
    ("manifold",),
    ("ranks", "kernels"),
    ("layers",),
    ("integrators",),
    ("optimizers",),
    ("reporting", "reloading"),
    ("training",),
    ("export", "callbacks", "saving"),
    ("model",),
    ("convert",),
    ("adapters",),
    ("diagnostics", "command_line"),
    ("__init__", "__main__"),
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
# The base is flat: its files may use each other.
BASE = LEVELS[0]


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def nodes(tree):
    """All nodes of a syntax tree, without those under `if TYPE_CHECKING`."""
    yield tree
    for_types = isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING"
    for child in tree.orelse if for_types else ast.iter_child_nodes(tree):
        yield from nodes(child)


def imported(path):
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            # `from package import name`: the name is a module, or something in the package.
            inside = {f"{node.module}.{one.name}" for one in node.names}
            found.update(inside & set(MODULES) or {node.module})
    return {name for name in found if name in MODULES}


IMPORTS = {name: imported(path) - {name} for name, path in MODULES.items()}


def part(name):
    """The folder of a module, or the file where it is in none."""
    return [*name.split("."), "__init__"][1]


@pytest.mark.parametrize("name", MODULES)
def test_a_folder_imports_only_from_those_below_it(name):
    own = part(name)
    for other in map(part, IMPORTS[name]):
        allowed = other == own or LEVEL[other] < LEVEL[own] or {own, other} <= set(BASE)
        assert allowed, f"{name} imports from {other}"


def test_no_files_import_each_other_in_a_circle():
    left = dict(IMPORTS)
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"in a circle, or above one: {sorted(left)}"
