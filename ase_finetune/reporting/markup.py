"""Text that comes from data, as part of a page."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

# HTML forbids them, and half of a surrogate pair is no text: names of files may hold both.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """Text with a mark in the place of what cannot be shown."""
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def text(value: Any) -> str:
    """Anything as text of a page or of an attribute, never as markup."""
    return html.escape(printable(str(value)), quote=True)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    """A table of texts and numbers; the first cell of each row names it."""
    head = "".join(f"<th>{text(item)}</th>" for item in heads)
    lines = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>{"".join(f"<td>{text(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{lines}</tbody></table></div>'


def folded(title: str, content: str) -> str:
    """HTML that is shown when it is asked for."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"
