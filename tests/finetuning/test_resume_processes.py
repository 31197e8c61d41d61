"""Runs of SevenNet-0 that go on in another process give the same bits, in weights and history."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ase_finetune import FinetunedCalculator
from tests import morse

ROOT = Path(__file__).parents[2]

RUN = """
import os, signal, sys
from ase.io import read
from ase_finetune import finetune
from ase_finetune.errors import RunStoppedError
from ase_finetune.finetuning.keeping import RunKeeper

output, method, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
original, steps = RunKeeper.after_step, []

def after_step(self, trainer):
    steps.append(1)
    if len(steps) == stop:
        os.kill(os.getpid(), signal.SIGTERM)
    original(self, trainer)

RunKeeper.after_step = after_step
options = dict(epochs=2, batch_size=2, replay_size=4, monitor_size=3, fisher_size=3, device="cpu", report=False)
frames, valid = (read(f"examples/data/lips_{name}.extxyz", "::20")[:4] for name in ("train", "valid"))
if method == "ewc":
    options["ema_decay"] = 0.5
try:
    finetune("7net-0", frames, valid, output=output, resume=True, method=method, verbose=False, **options)
except RunStoppedError:
    sys.exit(7)
"""


def start(output, method, stop=0):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, str(output), method, str(stop)]
    return subprocess.run(command, env=environment, cwd=ROOT, check=False, timeout=600).returncode  # noqa: S603


def history(output):
    lines = [line.split(",") for line in (output / "history.csv").read_text().splitlines()]
    kept = [k for k, name in enumerate(lines[0]) if name not in ("seconds", "peak_memory_gb")]
    return [[line[k] for k in kept] for line in lines]


@pytest.mark.slow
@pytest.mark.sevenn
@pytest.mark.parametrize("method", ["reewc", "ewc"])
def test_sevennet_in_another_process(tmp_path, method):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert start(whole, method) == 0
    assert start(parts, method, stop=1) == 7
    assert start(parts, method, stop=2) == 7
    assert start(parts, method) == 0
    assert history(parts) == history(whole)
    one, two = (FinetunedCalculator(path / "model", device="cpu").potential for path in (whole, parts))
    assert morse.same_weights(one, two)
