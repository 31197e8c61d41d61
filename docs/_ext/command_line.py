"""The help texts of the command line, as they are on the day of the build: ``{help} fit``."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ase_finetune.cli import main

WIDTH = "88"


def help_of(words: list[str]) -> str:
    """What ``ase-finetune WORDS --help`` prints."""
    printed = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*words, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return printed.getvalue().rstrip()


class Help(SphinxDirective):
    """The help of a verb, or of the program without one."""

    optional_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """A literal block."""
        text = help_of(self.arguments)
        if not text:
            raise self.error(f"ase-finetune {' '.join(self.arguments)} --help prints nothing")
        block = nodes.literal_block(text, text)
        block["language"] = "text"
        return [block]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("help", Help)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
