"""The pages of the project and the code blocks on them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Everything a user reads, by its path from the root of the repository.
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "examples" / "data" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    )
    if "_build" not in path.parts
)

#: Comments that readers do not see: why a block cannot be run here, or the file that a reader puts it into.
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*?) -->\n+)?(?:<!-- file: (?P<file>[^\n]*?) -->\n+)?"
    r"```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``reason`` says why it is not run, if it is not, ``file`` where it is put instead."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None
    file: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The blocks of a page in order, of one language or all."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        if language in (None, match["language"]):
            found.append(Block(page, line, match["language"], match["text"], match["reason"], match["file"]))
    return found
