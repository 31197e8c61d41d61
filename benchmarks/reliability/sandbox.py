"""Actions that may go wrong in any way, each in a process of its own with bounds on memory and time."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase_finetune.errors import FinetuneError

GIB = 1 << 30


@dataclass(frozen=True)
class Outcome:
    """How an action ended.

    Attributes
    ----------
    kind
        ``"result"``, ``"refused"`` (an error of this package), ``"error"`` (any other), ``"crash"`` (the process
        died) or ``"hang"``.
    error
        Class of the error, or the signal.
    text
        Its message, with the trace where it is none of ours.
    value
        What the action returned.
    seconds
        It took so long.
    """

    kind: str
    error: str = ""
    text: str = ""
    value: Any = None
    seconds: float = 0.0


def attempt(action: Callable[[], Any], *, memory: int = 4 * GIB, seconds: float = 20.0) -> Outcome:
    """Run an action in a forked process.

    Parameters
    ----------
    action
        Returns something JSON-able.
    memory
        How many bytes of address space it may take beyond what this process has.
    seconds
        After which it counts as hanging and is killed.
    """
    reader, writer = os.pipe()
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reader)
        _run(action, memory, writer)
    os.close(writer)
    text, finished = _receive(reader, start + seconds)
    os.close(reader)
    if not finished:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    took = round(time.monotonic() - start, 2)
    if not finished:
        return Outcome("hang", seconds=took)
    if os.WIFSIGNALED(status) or not text:
        return Outcome("crash", error=str(status), seconds=took)
    return Outcome(**json.loads(text), seconds=took)


def _run(action: Callable[[], Any], memory: int, writer: int) -> None:
    """In the child: never returns, and lets no error out."""
    warnings.simplefilter("ignore")
    answer: dict[str, Any] = {"kind": "error", "error": "?", "text": "the answer could not be written"}
    try:
        limit = _address_space() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            answer = {"kind": "result", "value": action()}
        except FinetuneError as error:
            answer = {"kind": "refused", "error": type(error).__name__, "text": str(error)[:5000]}
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is a finding
            answer = {"kind": "error", "error": type(error).__name__, "text": traceback.format_exc()[-4000:]}
        os.write(writer, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _receive(reader: int, deadline: float) -> tuple[str, bool]:
    """All that the child writes, and whether it ended before the deadline."""
    parts = []
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            part = os.read(reader, 1 << 16)
            if not part:
                return b"".join(parts).decode(), True
            parts.append(part)
    return "", False


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
