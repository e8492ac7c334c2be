"""Settings of the site that `make site` builds with Sphinx: Markdown and notebooks in, nothing from the network."""

import re
from pathlib import Path

import matplotlib
from docutils import nodes
from docutils.utils import new_document
from latex2mathml.converter import convert
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.util.docutils import SphinxDirective

project = "xLSTM-UNet Lab"
copyright = "The xLSTM-UNet Lab authors, Apache-2.0"
html_title, html_theme = project, "furo"  # furo takes the fonts of the reader's machine
html_static_path = ["site.css", str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSerif.ttf"))]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
extensions = ["sphinx.ext.autodoc", "myst_nb"]
highlight_language = "none"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # pictures come from the solutions, which a test keeps executed

autodoc_default_options = {"members": True, "ignore-module-all": True}  # a name is shown where it is defined
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
# Types in signatures link to our own classes where they can; those of other libraries have no pages here.
nitpick_ignore_regex = [("py:(class|data|exc)", ".*")]

# Formulas become MathML while the site is built: no script, and no font, has to be loaded to read them.
html_math_renderer = "mathml"
TALL = {r"\|": "‖", r"\lfloor": "⌊", r"\rfloor": "⌋"}  # delimiters that latex2mathml does not know after \Big


def mathml(formula: str, display: str) -> str:
    """A formula as MathML; ValueError for a command that the converter does not know, which it leaves as it stands."""
    known = re.sub(r"\\(big|Big)(\\\||\\lfloor|\\rfloor)", lambda match: rf"\{match[1]}{TALL[match[2]]}", formula)
    converted = convert(known, display=display)
    if "\\" in converted:
        raise ValueError(f"latex2mathml does not know all of {formula!r}: write it otherwise, or extend TALL")
    return converted


def inline_formula(writer, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block_formula(writer, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


class Markdown(SphinxDirective):
    """What stands inside is Markdown: our docstrings are, where Sphinx expects reStructuredText."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        inside = new_document(self.get_source_info()[0], self.state.document.settings)
        MystParser().parse("\n".join(self.content), inside)
        return inside.children


def as_markdown(app, what, name, thing, options, lines: list[str]) -> None:
    """Called by autodoc with the lines of every docstring, which it changes."""
    lines[:] = [".. markdown::", "", *(f"   {line}" for line in lines), ""]


def skip(app, what, name, thing, skipped: bool, options) -> bool | None:
    """Leave out the fields of a named tuple, of which Python says no more than their number."""
    return True if (getattr(thing, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    app.add_directive("markdown", Markdown)
    app.connect("autodoc-process-docstring", as_markdown)
    app.connect("autodoc-skip-member", skip)
