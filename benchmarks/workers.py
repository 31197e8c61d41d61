"""Other processes: peers in an environment of their own, and fresh ones whose memory is measured."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from benchmarks.suite import ROOT

MIB = 2**20


class WorkerError(RuntimeError):
    """A worker ended before it answered; the message is the end of what it wrote to stderr."""


class Worker:
    """A peer that stays alive in another environment: each line it is sent is a task, each line it answers is JSON.

    Parameters
    ----------
    python
        Interpreter of the environment.
    script
        File in this folder, which imports nothing of ours and reads its first line, the options.
    options
        JSON-able.

    Raises
    ------
    WorkerError
        If it cannot start; for example because a package is missing there.
    """

    def __init__(self, python: Path, script: str, options: Mapping[str, Any]) -> None:
        path = Path(__file__).with_name(script)
        # Not a pipe, which would fill up when nobody reads it.
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  # closed by __exit__
        self._process = subprocess.Popen(
            [str(python), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        #: The answer to the options.
        self.ready = self.ask(dict(options))

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; what was not read of its answers is lost."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._complaints):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # a task that the process did not live to read
                    pipe.close()
        self._process.wait()

    def ask(self, task: Any) -> dict[str, Any]:
        """Send a task and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended; why is on stderr
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._complaints.seek(0)
            complaint = self._complaints.read().strip() or "it said nothing"
            self.close()
            raise WorkerError(complaint.splitlines()[-1])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def seconds(self) -> float:
        """One repeat, timed by the worker itself."""
        return float(self.ask("run")["seconds"])


def fresh(module: str, task: Mapping[str, Any]) -> dict[str, Any]:
    """What ``python -m benchmarks.<module> TASK`` measures in a process of its own.

    Raises
    ------
    WorkerError
        If it fails; out of memory, most likely, if it says nothing.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", json.dumps(task)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise WorkerError(f"the process ended with status {done.returncode}: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def answer(measure: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The other end of :func:`fresh`."""
    print(json.dumps(measure(json.loads(sys.argv[1]))))


class Peak:
    """Peak memory in bytes since it was made, above what was in use then.

    On a CPU it is resident memory, of which glibc keeps some after it was freed.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device if device.type == "cuda" else None
        if self._gpu is not None:
            torch.cuda.synchronize(self._gpu)
            torch.cuda.reset_peak_memory_stats(self._gpu)
            self._before = torch.cuda.memory_allocated(self._gpu)
            return
        forget = Path("/proc/self/clear_refs")
        if forget.exists():
            try:
                forget.write_text("5")  # Linux: the highest resident set so far is forgotten
            except OSError:
                print("the peak of loading cannot be forgotten; small peaks hide behind it", file=sys.stderr)
        self._before = resident("VmRSS")

    def read(self) -> int:
        if self._gpu is not None:
            return torch.cuda.max_memory_allocated(self._gpu) - self._before
        return resident("VmHWM") - self._before


def resident(name: str) -> int:
    """Bytes of resident memory now (VmRSS) or at most (VmHWM); only the latter where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
