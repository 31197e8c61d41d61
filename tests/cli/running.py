"""Running the command line on the files of the ``folder`` fixture."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

from ase_finetune import FinetunedCalculator
from ase_finetune.cli import main

#: Drawing takes longer than such a fit.
NO_REPORT = ("--report", "false")
ROOT = Path(__file__).parents[2]


def fit(folder: Path, *options: str, output: str = "run", report: bool = False) -> int:
    """Fit the saved potential to the frames."""
    files = [str(folder / "model"), str(folder / "train.extxyz"), "--output", str(folder / output), "--device", "cpu"]
    # An option may be given once.
    replay = [] if "--replay" in options else ["--replay", str(folder / "replay.extxyz")]
    return main(["fit", *files, *replay, *([] if report else NO_REPORT), *options])


def weights(path):
    return FinetunedCalculator(path, device="cpu").potential


def program(
    arguments: Sequence[str], cwd: Path, start: Sequence[str] = (sys.executable, "-m", "ase_finetune")
) -> subprocess.CompletedProcess[str]:
    """The program as a process of its own, its output not on a terminal."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [*start, *arguments]
    return subprocess.run(  # noqa: S603  # our own program
        command, capture_output=True, text=True, cwd=cwd, check=False, env=environment
    )


def on_terminal(arguments: Sequence[str], cwd: Path, interrupt: str = "") -> tuple[int, str]:
    """Exit code and all that the program writes on a terminal of 80 columns; Ctrl-C once it has written a text."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    command = [sys.executable, "-m", "ase_finetune", *arguments]
    process = subprocess.Popen(  # noqa: S603  # our own program
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # what Linux has at the end of a terminal
            break
        if not piece:
            break
        written += piece
        if interrupt and interrupt in written.decode(errors="ignore"):
            process.send_signal(signal.SIGINT)
            interrupt = ""
    os.close(ours)
    return process.wait(), written.decode()
