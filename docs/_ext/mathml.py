"""Equations as MathML, which browsers draw by themselves: no network, no JavaScript, no LaTeX."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

#: What the converter leaves as it is, and what it would need an environment for.
_LEFT_OVER = re.compile(r"\\[a-zA-Z]+|>&<|>&amp;<")


def mathml(latex: str, display: str) -> str:
    """The MathML of an equation.

    Raises
    ------
    ExtensionError
        If a part of the equation is not known.
    """
    found = convert(latex, display=display)
    rest = _LEFT_OVER.search(found)
    if rest:
        raise ExtensionError(f"equation {latex!r}: {rest.group()} cannot be written as MathML")
    return found


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(f'<span class="math">{mathml(node.astext(), "inline")}</span>')
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    for part in node.astext().split("\n\n"):
        translator.body.append(f'<div class="math">{mathml(part.strip(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer with Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
