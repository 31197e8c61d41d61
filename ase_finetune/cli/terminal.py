"""What is said where: results on stdout, notes on stderr, as many as were asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(text: str, end: str = "\n") -> None:
    """Write to stderr at once."""
    sys.stderr.write(text + end)
    sys.stderr.flush()


class Terminal:
    """Prints results, notes and details.

    Parameters
    ----------
    verbosity
        0 for results only, 1 for notes and progress bars as well, 2 for details as well.
    """

    def __init__(self, verbosity: int = 1) -> None:
        self.verbosity = verbosity
        self._start = time.perf_counter()

    @property
    def progress(self) -> bool | None:
        """Whether to show progress bars: ``None`` leaves it to whether there is a terminal."""
        return None if self.verbosity else False

    def result(self, text: str) -> None:
        """What was asked for: data for the next program."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """What a user should know."""
        if self.verbosity:
            say(text)

    def detail(self, text: str) -> None:
        """What helps to understand a run, with the seconds since the start."""
        if self.verbosity > 1:
            say(f"[{time.perf_counter() - self._start:6.1f} s] {text}")

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """A line on the terminal for as long as something without a progress bar lasts."""
        shown = self.verbosity > 0 and sys.stderr.isatty()
        if shown:
            say(f"{text} ...", end="")
        try:
            yield
        finally:
            if shown:
                say("\r\x1b[K", end="")
