"""Text that comes from data, as part of a page."""

from __future__ import annotations

import html
import re
from typing import Any

# HTML forbids them, and half of a surrogate pair is no text: names of files may hold both.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """Text with a mark in the place of what cannot be shown."""
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def text(value: Any) -> str:
    """Anything as text of a page or of an attribute, never as markup."""
    return html.escape(printable(str(value)), quote=True)
