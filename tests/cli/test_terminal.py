from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from ase.io import write

from ase_finetune.cli.terminal import Terminal
from tests import morse
from tests.cli.running import ROOT, on_terminal, program

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of Unix")


@pytest.fixture
def slow(folder):
    """Structures that take some seconds to relax."""
    structures = [atoms.repeat(3) for atoms in morse.silicon(8, 3)]
    for atoms in structures:
        atoms.positions += np.random.default_rng(1).normal(scale=0.1, size=atoms.positions.shape)
    write(folder / "slow.extxyz", structures)
    return folder


RELAX = ["relax", "model", "slow.extxyz", "--output", "out.extxyz", "--steps", "30", "--max_edges", "500"]


def test_a_bar_on_a_terminal(slow):
    code, text = on_terminal(RELAX, slow)
    assert code == 3
    assert "loading model ..." in text
    assert "\x1b[K" in text
    assert re.search(r"relax: +\d+%\|.*\d/8 \[\d\d:\d\d<", text)
    # The lines that stay.
    assert text.count("not converged") == 8
    assert "0 of 8 converged; written to out.extxyz" in text


@pytest.mark.slow
def test_an_interrupt_is_one_line(slow):
    code, text = on_terminal([*RELAX, "--steps", "100000", "--fmax", "1e-9"], slow, interrupt="%|")
    assert code == 130
    assert text.rstrip().endswith("ase-finetune: interrupted")
    assert "Traceback" not in text
    assert not (slow / "out.extxyz").exists()


@pytest.mark.slow
def test_no_bar_when_quiet(slow):
    code, text = on_terminal([*RELAX, "-q"], slow)
    assert code == 3
    assert "%|" not in text
    assert "\x1b" not in text
    assert "loading" not in text
    assert "written" not in text
    assert len(text.splitlines()) == 2 + 8


def test_no_bar_without_a_terminal(slow):
    answer = program(RELAX, slow)
    assert answer.returncode == 3
    assert "\r" not in answer.stdout + answer.stderr
    assert "\x1b" not in answer.stdout + answer.stderr
    assert len(answer.stdout.splitlines()) == 2 + 8
    assert answer.stderr.splitlines() == [
        "relaxing 8 structures to 0.05 eV/Å with fire",
        "0 of 8 converged; written to out.extxyz",
    ]


@pytest.mark.slow
@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_pipes_that_end_early(folder):
    """``| head`` closes its end; nothing is said about it."""
    command = f"{sys.executable} -m ase_finetune md model train.extxyz@0 --output run.traj --interval 1 -q"
    line = f"{command} | head -1; echo ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shell = [BASH, "-c", line]
    answer = subprocess.run(shell, capture_output=True, text=True, cwd=folder, check=True, env=environment)  # noqa: S603
    assert answer.stdout.split() == ["time/ps", "T/K", "Epot/eV", "Etot/eV", "p/GPa", "141"]
    assert answer.stderr == ""


def test_details(folder):
    answer = program(["evaluate", "model", "valid.extxyz", "-v"], folder)
    assert re.search(r"^\[ +\d+\.\d s\] model: morse, 8 parameters, .*float32 on", answer.stderr, re.MULTILINE)
    assert re.search(r"ase_finetune \d.*, ase \d.*, torch \d", answer.stderr)
    assert program(["evaluate", "model", "valid.extxyz"], folder).stderr == ""


def test_levels(capsys):
    for verbosity, notes, details in ((0, 0, 0), (1, 1, 0), (2, 1, 1)):
        terminal = Terminal(verbosity)
        terminal.result("result")
        terminal.note("note")
        terminal.detail("detail")
        with terminal.working("working"):
            time.sleep(0)
        told = capsys.readouterr()
        assert told.out == "result\n"
        assert told.err.count("note") == notes
        assert told.err.count("detail") == details
        assert "working" not in told.err
