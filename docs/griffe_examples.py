"""Has the API pages show docstrings as they are meant: `>>>` lines as code, arguments whole."""

import re

import griffe

_DOCTEST = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.MULTILINE)
# The names of arguments that share a description, over two lines.
_NAMES = re.compile(r"^( *\w+(?:, \w+)*,)\n *(?=\w+(?:, \w+)*:)", re.MULTILINE)


class Examples(griffe.Extension):
    """Fences every example in a docstring."""

    def on_object(self, *, obj, **kwargs):
        """Called for each object that has been read."""
        if obj.docstring:
            fenced = _DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)
            obj.docstring.value = _NAMES.sub(r"\1 ", fenced)
