"""Pages as a reader of HTML sees them, with the standard library."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "img", "br", "link", "input", "hr"}
# Elements that HTML lets end without saying so.
_OPTIONAL = {"li", "p", "tr", "td", "th", "thead", "tbody"}


class Page(HTMLParser):
    """Tags, ids, references and text of a page; what is not closed raises."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []
        self._words: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open, self._open

    @property
    def text(self) -> str:
        """All that is shown, with single spaces."""
        return " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                self.references.append(value or "")
            if name == "aria-label":
                self.labels.append(value or "")
        if tag not in _VOID | _OPTIONAL:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID | _OPTIONAL:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID | _OPTIONAL:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self._words.append(data)
