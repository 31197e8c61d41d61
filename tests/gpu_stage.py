"""A stage for the tests of benchmarks.gpu: rows that go well, go wrong, kill their process, or never end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

from benchmarks.gpu.stage import Bench, SkippedError, Task


def fails() -> dict:
    raise ValueError("out of luck")


def skips() -> dict:
    raise SkippedError("it rained")


def dies() -> dict:
    sys.stdout.write("my last words\n")
    sys.stdout.flush()
    os._exit(3)


def tasks(bench: Bench) -> Iterator[Task]:
    yield "well", lambda: {"value": 1.0, "unit": "s"}
    yield "wrong", lambda: {"right": False, "errors": {"forces": 2.0}, "bounds": {"forces": 1.0}}
    yield "fails", fails
    yield "skips", skips
    yield "dies", dies
    yield "after", lambda: {"ours": 1.0, "peer": 2.0, "ratio": 0.5, "goal": 0.7, "met": True, "unit": "s"}
    if "hangs" in bench.models:
        yield "hangs", lambda: time.sleep(600) or {}
        yield "never", dict
