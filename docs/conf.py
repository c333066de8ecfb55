"""How `make docs` turns this folder, and the docstrings, into pages."""

import inspect
import re

import mcvd

project, author, release = "mcvd", "the authors of mcvd", mcvd.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
html_theme = "furo"
html_domain_indices = False  # of modules: no page leads there
html_title = f"mcvd {release}"
default_role = "literal"  # `name` in a docstring is code
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
viewcode_line_numbers = True


def setup(app):
    app.connect("autodoc-process-docstring", _fields)
    app.connect("source-read", _links)


def _links(app, name, source):
    """The bundled model's card lies beside its weights: the page `card` includes it. Folders are no pages."""
    text = source[0].replace("](../src/mcvd/pretrained/digits/README.md)", "](card.md)")
    source[0] = re.sub(r"\[([^\[\]]+)\]\(\.\./[\w/]+\)", r"\1", text)


def _fields(app, what, name, thing, options, lines):
    """Docstrings say what an argument is in a line of its own, `frames: how many`: as a field, it stands in a list."""
    thing = thing.__init__ if inspect.isclass(thing) else thing
    try:
        arguments = set(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return
    out, field = [], False
    for line in lines:
        match = re.match(r"((?:\w+, )*\w+): (.*)", line)
        if match and set(match[1].split(", ")) <= arguments:
            out += [""] if out and out[-1].strip() and not field else []
            out.append(f":param {match[1].replace(', ', '/')}: {match[2]}")  # a blank would make the first a type
            field = True
        elif line.startswith(("Raises ", "Returns ")) or not line.strip():
            out += [line] if not field else ["", line]
            field = False
        else:
            out.append(f"    {line.strip()}" if field else line)
    lines[:] = out
