"""What the site adds to MkDocs: files outside of docs/ that pages link to, notebooks, pictures.

A path on the site is the path in the repository, without docs/. So the links in Markdown files lead
to the same place on the site as in the repository.
"""

import pathlib
import posixpath
import re
import subprocess
import sys

import jupytext
import nbformat
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
HOME = "README.md"
INSTALL = "%pip install --quiet 'keras_lowrank[examples]'"  # where it is not, as in Colab
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files, config):
    """Adds the README, and all that is linked to from it on."""
    docs = [ROOT / "docs" / file.src_uri for file in files.documentation_pages()]
    waiting, seen = [ROOT / HOME, *docs], set()
    while waiting:
        source = waiting.pop()
        if source in seen or not source.is_file():
            continue
        seen.add(source)
        if not source.is_relative_to(ROOT / "docs"):
            path = source.relative_to(ROOT).as_posix()
            files.append(File.generated(config, path, abs_src_path=str(source)))
        if source.suffix == ".md":
            waiting += [
                (source.parent / link).resolve() for link in _LINK.findall(source.read_text())
            ]
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between files of the site.

    Pages without siblings get the room of the list of siblings.
    """
    if page.parent is None:
        page.meta["hide"] = ["navigation"]
    path = page.file.src_uri
    inside = (ROOT / "docs" / path).is_file()
    folder = posixpath.dirname(f"docs/{path}" if inside else path)

    def on_site(match):
        target = posixpath.normpath(posixpath.join(folder, match[0]))
        here = posixpath.dirname(path) or "."
        return posixpath.relpath(target.removeprefix("docs/"), here)

    return _LINK.sub(on_site, markdown)


def on_page_content(html, page, config, files):
    """Links the page of a guide to its notebook."""
    guide = pathlib.Path(page.file.src_uri)
    if guide.suffix != ".py":
        return html
    link = f'<a href="{guide.stem}.ipynb" download>This guide as a notebook</a>'
    return f"{html}<p>{link}, for Jupyter and Colab.</p>"


def on_post_build(config):
    """Writes a notebook beside the page of each guide, and draws the pictures anew."""
    for guide in (ROOT / "docs/guides").glob("*.py"):
        notebook = jupytext.read(guide)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(INSTALL))
        jupytext.write(notebook, pathlib.Path(config.site_dir, "guides", f"{guide.stem}.ipynb"))
    if config.plugins["mkdocs-jupyter"].config["execute"]:
        pictures = [sys.executable, ROOT / "docs/pictures.py", f"{config.site_dir}/images"]
        subprocess.run(pictures, check=True)
