"""Two processes under torchrun against one, same batches in all: what distributing them is worth.

``python -m torch.distributed.run --nproc-per-node 2 -m benchmarks.two_processes TASK`` runs the work itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import torch

from ase_finetune import finetune
from ase_finetune.data import read_frames
from benchmarks.inputs import MODEL, target
from benchmarks.paired import Comparison, alternate, cores
from benchmarks.suite import ROOT, Missing, Row, Setting, Target
from benchmarks.workers import WorkerError

#: A throughput of 1.6 times that of one process.
TARGETS = {"an epoch": Target(cpu=1 / 1.6, gpu=1 / 1.6)}


def work(task: dict[str, Any]) -> None:
    """What each process runs; finetune() sees by itself whether it was launched with others."""
    train = read_frames(task["target"]).select(range(task["frames"]))
    calculator = finetune(
        MODEL,
        train,
        None,
        method="naive",
        replay=None,
        epochs=2,  # the first one warms up
        batch_size=task["batch"],
        device=task["device"],
        verbose=False,
    )
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps({"seconds": calculator.history[-1]["seconds"]}))


def launch(processes: int, task: dict[str, Any]) -> float:
    """Seconds of an epoch in so many processes of one thread each."""
    launcher = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    )
    command = [sys.executable, *launcher, "-m", "benchmarks.two_processes", json.dumps(task)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if done.returncode != 0 or len(found) != 1:
        complaint = last_words(done.stderr) or f"{len(found)} answers"
        raise WorkerError(f"{processes} processes ended with status {done.returncode}: {complaint}")
    return float(json.loads(found[0])["seconds"])


def last_words(complaints: str) -> str:
    """The last line that a process wrote before torchrun told, at length, that it had ended."""
    own = takewhile(lambda line: "torch/distributed/elastic/" not in line, complaints.strip().splitlines())
    return next((line for line in reversed(list(own)) if line.strip("- ")), "")


def run(setting: Setting) -> Iterator[Row | Missing]:
    frames, batch = setting.size((2, 2), (8, 4), (32, 8))
    name, against = f"{frames} frames of {target(setting).name} in batches of {batch}, two processes", "one process"
    available = torch.cuda.device_count() if setting.on_gpu else cores()
    if available < 2:
        yield Missing(name, against, f"needs two {'GPUs' if setting.on_gpu else 'cores'}, there is {available}")
        return
    task = {"target": str(target(setting)), "frames": frames, "batch": batch, "device": setting.device.type}
    try:
        times = setting.times(3) | {"warmup": 0}
        measured: Comparison = alternate(lambda: launch(2, task), lambda: launch(1, task), **times)
    except WorkerError as error:
        yield Missing(name, against, str(error))
        return
    yield Row(name, against, measured, TARGETS["an epoch"].on(setting), "s/epoch", "one thread in each process")


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
