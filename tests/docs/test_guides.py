"""The guides run from top to bottom, as a reader would run them."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
GUIDES = [*sorted((ROOT / "docs/guides").glob("*.py")), ROOT / "docs/guide.md", ROOT / "README.md"]
CELL = re.compile(r"# %%( \[markdown\])?$")


def code(guide):
    text = guide.read_text()
    if guide.suffix == ".py":
        return text
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_runs(guide, tmp_path):
    pytest.importorskip("matplotlib", reason="guides draw with the extra `examples`")
    (tmp_path / "guide.py").write_text(code(guide))
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:__main__", "guide.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    left = {path.name for path in tmp_path.iterdir()} - {"guide.py"}
    assert guide.suffix == ".md" or not left  # a build of the site runs guides in the repository


@pytest.mark.parametrize("guide", GUIDES[:-2], ids=lambda guide: guide.stem)
def test_a_guide_is_a_page_with_a_title_and_prose(guide):
    lines = guide.read_text().splitlines()
    assert lines[0] == "# %% [markdown]" and lines[1].startswith("# # ")
    cells = [line for line in lines if line.startswith("# %%")]
    assert all(map(CELL.match, cells)), cells
    assert cells.count("# %%") >= 3
