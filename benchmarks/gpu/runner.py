"""Runs the stages, each in a process of its own with its own time limit, and says at the end what is known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu.plan import MODULES, ROOT, STAGES
from benchmarks.gpu.rows import PROCESS, STAGE, Book, line, table

#: All files of a run: few and flat, as machines that are lent give them back.
LOG, SUMMARY = "log.txt", "summary.txt"

#: Seconds that a stage may run over before it is stopped: a row is not cut at its limit.
GRACE = (10.0, 45.0)

#: With less time than this a stage is not started: it would not get beyond its imports.
SHORTEST = 8.0


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes
    ----------
    folder
        Of the results.
    end
        When everything is to be over, as ``time.time()``.
    stages
        Some of :data:`benchmarks.gpu.plan.STAGES`.
    device, quick, models, data, peers
        As of :class:`benchmarks.gpu.stage.Bench`.
    environment
        Of the processes of the stages.
    """

    folder: Path
    end: float
    stages: Sequence[str]
    device: str
    quick: bool
    models: Sequence[str]
    data: Path | None
    peers: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class Runner:
    """The stages of one start of the program.

    Parameters
    ----------
    options
        What to do.
    identity
        For every row, see :func:`benchmarks.gpu.identity.identity`.
    """

    def __init__(self, options: Options, identity: Mapping[str, Any]) -> None:
        self._options, self._identity = options, dict(identity)
        self.book = Book(options.folder, identity)
        self._end = options.end

    def run(self) -> bool:
        """Run all stages; returns whether everything worked and was right."""
        waiting = list(self._options.stages)
        for stage in self._options.stages:
            left = self._end - time.time()
            share = STAGES[stage] / sum(STAGES[name] for name in waiting)
            waiting.remove(stage)
            if left < SHORTEST:
                self._say(line(self.book.add(stage, STAGE, "skipped", reason="no time was left")))
                continue
            self._stage(stage, time.time() + left * share)
        rows = self.book.rows()
        text = f"{self._heading()}\n{table(rows)}\n"
        (self._options.folder / SUMMARY).write_text(text, encoding="utf-8")
        print(f"\n{text}", end="", flush=True)
        return all(row["status"] in ("ok", "skipped") for row in rows)

    def _stage(self, stage: str, until: float) -> None:
        """Run a stage, and once more if its process dies: the row it died in is left out then."""
        self._say(f"--- {stage}, {until - time.time():.0f} s")
        start, rows, died = time.time(), len(self.book.rows()), False
        for _ in range(3):
            told = self._process(stage, until)
            known, rows = rows, len(self.book.rows())
            if not told:
                break
            died = True
            self._say(line(self.book.add(stage, PROCESS, "failed", reason=told[-1], lines=told)))
            if known == rows or until - time.time() < SHORTEST:
                break
        for name in self.book.unmeasured(stage):
            self._say(line(self.book.add(stage, name, "skipped", reason="its process had to end before")))
        if not died:  # unlike in an earlier run, perhaps
            self.book.add(stage, PROCESS, "ok")
        self.book.add(stage, STAGE, "ok", value=time.time() - start, unit="s")

    def _process(self, stage: str, until: float) -> list[str]:
        """The last lines of a process that died or had to be stopped; none if it ended well."""
        options = {
            "stage": stage,
            "module": MODULES[stage],
            "folder": str(self._options.folder.resolve()),
            "device": self._options.device,
            "quick": self._options.quick,
            "models": list(self._options.models),
            "data": None if self._options.data is None else str(self._options.data),
            "peers": str(self._options.peers),
            "until": until,
            "identity": self._identity,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.stage", json.dumps(options)],
            cwd=ROOT,
            env=self._environment(stage),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its workers end with it
        )
        last: deque[str] = deque(maxlen=12)
        reader = threading.Thread(target=self._read, args=(process.stdout, stage, last))
        reader.start()
        limit = max(
            1.0,
            min(until + min(max(0.2 * (until - time.time()), GRACE[0]), GRACE[1]), self._end + GRACE[0]) - time.time(),
        )
        stopped = False
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            stopped = True
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join()
        if stopped:
            return [*last, f"stopped {limit:.0f} s after its start: its time was over"]
        if process.returncode == 0:
            return []
        return [*last, f"its process ended with status {process.returncode}: {last[-1] if last else 'it said nothing'}"]

    def _environment(self, stage: str) -> dict[str, str]:
        """Of a stage's process; on a CPU what it frees goes back to the system where memory is measured."""
        exact = {"MALLOC_MMAP_THRESHOLD_": "65536"} if stage == "memory" and self._options.device == "cpu" else {}
        return {**self._options.environment, **exact}

    def _read(self, pipe: IO[str], stage: str, last: deque[str]) -> None:
        """Everything into the log; rows to the terminal, too."""
        with pipe:
            for text in pipe:
                last.append(text.rstrip()[:400])
                self._say(text.rstrip(), aloud=text.startswith(f"{stage}: "))

    def _say(self, text: str, aloud: bool = True) -> None:
        with (self._options.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        if aloud:
            print(text, flush=True)

    def _heading(self) -> str:
        who = self._identity
        form = ", quick form: sizes are small, figures mean nothing" if self._options.quick else ""
        return f"{who['card']}, torch {who['torch']}, commit {who['commit']}{form}"
