"""A stage in a process of its own: python -m benchmarks.gpu.stage OPTIONS, started by runner.py."""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.rows import PLANNED, Book, line
from benchmarks.suite import Setting

#: What a stage yields: the name of a row, and the function that measures its values.
Task = tuple[str, Callable[[], dict[str, Any]]]


class SkippedError(Exception):
    """A row that cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Bench:
    """What the rows of a stage need to know.

    Attributes
    ----------
    device
        A torch device.
    quick
        Small sizes: whether everything runs.
    models
        Of the stage *right*.
    data
        Folder of the research data, where there is one.
    peers
        Interpreter with sevenn's reEWC trainer and torch-sim, which cannot live beside mace.
    until
        When the stage is to end, as ``time.time()``.
    """

    device: torch.device
    quick: bool
    models: tuple[str, ...]
    data: Path | None
    peers: Path
    until: float

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is measured."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds until the stage is to end."""
        return self.until - time.time()

    @property
    def setting(self) -> Setting:
        """The same for the benchmarks of the suite."""
        return Setting(self.device, quick=self.quick, data=self.data, newest_sevenn=self.peers)

    def size(self, quick: Any, cpu: Any, gpu: Any) -> Any:
        """What is meant for this run."""
        return quick if self.quick else gpu if self.on_gpu else cpu


def work_off(stage: str, tasks: Iterator[Task], bench: Bench, book: Book) -> None:
    """Measure the rows that are not settled, the most important ones first, until the time is over.

    A row that fails is noted with the last lines of its traceback, and the next one is measured; the process ends only
    if the GPU is no longer usable.
    """
    settled, listed = book.settled(stage), list(tasks)
    book.add(stage, PLANNED, "ok", names=[name for name, _ in listed])
    for name, work in listed:
        if name in settled:
            continue
        if bench.left <= 0:
            print(line(book.add(stage, name, "skipped", reason="the time of its stage was over")), flush=True)
            continue
        book.add(stage, name, "begun")
        start = time.perf_counter()
        status, values = _attempt(work)
        row = book.add(stage, name, status, **values, seconds=time.perf_counter() - start)
        print(line(row), flush=True)
        _tidy(bench)


def _attempt(work: Callable[[], dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    try:
        values = work()
    except SkippedError as reason:
        return "skipped", {"reason": str(reason)}
    except Exception as error:  # noqa: BLE001  # the other rows are still worth measuring
        traceback.print_exc()
        last = "".join(traceback.format_exception(error)).strip().splitlines()[-12:]
        return "failed", {"reason": f"{type(error).__name__}: {error}"[:500], "lines": last}
    return ("wrong" if values.get("right") is False else "ok"), values


def _tidy(bench: Bench) -> None:
    """Free what the row has used; raises if the GPU answers with errors only."""
    gc.collect()
    if bench.on_gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def main() -> None:
    """The other end of ``runner.start``."""
    options = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")  # deprecations inside the peers' packages would bury the rows
    bench = Bench(
        device=torch.device(options["device"]),
        quick=options["quick"],
        models=tuple(options["models"]),
        data=None if options["data"] is None else Path(options["data"]),
        peers=Path(options["peers"]),
        until=options["until"],
    )
    module = importlib.import_module(options["module"])
    work_off(options["stage"], module.tasks(bench), bench, Book(Path(options["folder"]), options["identity"]))


if __name__ == "__main__":
    # Not this copy of the module: its SkippedError would be another one than that of the stages.
    importlib.import_module("benchmarks.gpu.stage").main()
