"""How the pages of this folder become a site: `make docs` writes it to build/site. Nothing is loaded from outside.

Formulas become MathML when the site is built. The figures of record, the log and the changelog are pages too, and
links to their files lead there. A directive ``{public}`` documents public names of lowbit by their docstrings.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

import lowbit

project = "lowbit"
author = "the lowbit authors"
copyright = author
version = release = lowbit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "literal"  # docstrings write `name`
html_theme = "furo"
html_title = "lowbit"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
pygments_style = "default"

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autosummary_generate = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100

ELSEWHERE = {
    "../benchmarks/RESULTS.md": "results.md",
    "../LOG.md": "log.md",
    "../CHANGELOG.md": "changelog.md",
    "../README.md": "index.md",
    "benchmarks/RESULTS.md": "results.md",
    "LOG.md": "log.md",
}


def pages_from_elsewhere(app: Sphinx, docname: str, source: list[str]) -> None:
    """Let links to files outside this folder that have a page lead to that page."""

    def lead(link: re.Match[str]) -> str:
        path, _, anchor = link[1].partition("#")
        return f"]({ELSEWHERE.get(path, path)}{'#' if anchor else ''}{anchor})"

    source[0] = re.sub(r"\]\(([^)\s:]+)\)", lead, source[0])


def formula(visitor: Any, node: nodes.math | nodes.math_block) -> None:
    """Write one formula as MathML, which browsers set by themselves."""
    block = isinstance(node, nodes.math_block)
    text = re.sub(r"\s*\n\s*", " ", node.astext())
    try:
        tree = latex2mathml.tex2mathml(text, as_block=block)
    except Exception as error:
        raise ExtensionError(f"{node.source}:{node.line}: no MathML of {text!r}: {error}") from error
    visitor.body.append(f'<div class="formula">{tree}</div>' if block else tree)
    raise nodes.SkipNode


def plain_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: no bar means a substitution, and each entry under References is one item."""
    lines[:] = [re.sub(r"(`+[^`]*`+)|\|", lambda found: found[1] or r"\|", line) for line in lines]
    references = False
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent == 0:
            references = line == "References:"
        elif references and line.strip():
            lines[number] = ("    - " if indent == 4 else "      ") + line.strip()


def without_routing(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out what scikit-learn adds to every estimator."""
    return True if re.fullmatch(r"set_\w+_request|get_metadata_routing", name) else None


class Public(SphinxDirective):
    """Document the public names in its body: a table of them, then each with its docstring."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Expand to autosummary and autodoc directives."""
        names = " ".join(self.content).split()
        lines = [".. autosummary::", ""] + [f"   lowbit.{name}" for name in names] + [""]
        for name in names:
            if inspect.isclass(getattr(lowbit, name)):
                lines += [f".. autoclass:: lowbit.{name}", "   :members:", ""]
            else:
                lines += [f".. autofunction:: lowbit.{name}", ""]
        return self.parse_text_to_nodes("```{eval-rst}\n" + "\n".join(lines) + "\n```")


def nothing_from_outside(app: Sphinx, exception: Exception | None) -> None:
    """Fail if a page loads a script, style, font or picture from another place."""
    if exception is None and app.builder.format == "html":
        for page in Path(app.outdir).rglob("*.html"):
            loaded = re.findall(
                r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//[^\"]*|<link[^>]+href=\"https?://[^\"]*",
                page.read_text(),
            )
            if loaded:
                raise ExtensionError(f"{page}: loads {loaded[0]} from outside")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register what is above."""
    app.connect("source-read", pages_from_elsewhere)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", without_routing)
    app.connect("build-finished", nothing_from_outside)
    app.add_directive("public", Public)
    app.add_html_math_renderer("mathml", inline_renderers=(formula, None), block_renderers=(formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
