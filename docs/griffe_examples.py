"""Has the API pages show the `>>>` lines of docstrings as code."""

import re

import griffe

_DOCTEST = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.MULTILINE)


class Examples(griffe.Extension):
    """Fences every example in a docstring."""

    def on_object(self, *, obj, **kwargs):
        """Called for each object that has been read."""
        if obj.docstring:
            fenced = r"\1```pycon\n\g<0>\n\1```"
            obj.docstring.value = _DOCTEST.sub(fenced, obj.docstring.value)
