"""reEWC, an epoch of alternating target and replay steps with the penalty: ours against the trainer of sevenn 0.13.

sevenn's trainer runs in an environment of its own (its e3nn is too new for mace) and stays alive between repeats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ase_finetune.data import read_frames
from ase_finetune.losses import Loss
from ase_finetune.potentials import load_potential
from benchmarks.inputs import LIPS, MODEL, MPTRJ, RATE, batches, flat_penalty, train, trainer
from benchmarks.paired import alternate, seconds
from benchmarks.suite import Missing, Row, Setting, Target
from benchmarks.training_step import naive
from benchmarks.workers import Worker, WorkerError

TARGETS = {"an epoch": Target(cpu=1.0, gpu=0.7)}
AGAINST = "sevenn's reEWC trainer"

#: Target structures of a step, replay structures of a step, steps.
BATCH, REPLAY, STEPS = 2, 4, 4


def our_epoch(setting: Setting, batch: int, replay: int, steps: int) -> Callable[[], None]:
    potential, _ = load_potential(MODEL, device=setting.device)
    target = read_frames(LIPS).select(range(batch * steps)).graphs(potential.cutoff)
    old = read_frames(MPTRJ).select(range(replay * steps)).graphs(potential.cutoff)
    config = dataclasses.replace(naive(Loss(), batch), method="reewc", replay_batch_size=replay)
    made = trainer(potential, target, config, old, flat_penalty(potential))
    return lambda: train(made, batches(len(target), batch))


def worker_options(setting: Setting, batch: int, replay: int, steps: int) -> dict[str, Any]:
    """What the worker needs to know: names are those of sevenn's keys."""
    config = {
        "LOSS": "huber",
        "LOSS_PARAM": {"delta": 0.01},
        "FORCE_WEIGHT": 1.0,
        "STRESS_WEIGHT": 0.01,
        "IS_TRAIN_STRESS": True,
        "OPTIMIZER": "adam",
        "OPTIM_PARAM": {"lr": RATE},
        "SCHEDULER": "exponentiallr",
        "SCHEDULER_PARAM": {"gamma": 1.0},
        "DEVICE": str(setting.device),
        "IS_DDP": False,
    }
    return {
        "model": MODEL,
        "threads": torch.get_num_threads(),
        "config": config,
        "train": str(LIPS),
        "memory": str(MPTRJ),
        "train_count": batch * steps,
        "memory_count": replay * steps,
        "batch": batch,
        "memory_batch": replay,
    }


def run(setting: Setting) -> Iterator[Row | Missing]:
    batch, replay, steps = setting.size((1, 1, 2), (BATCH, REPLAY, STEPS))
    name = f"an epoch of {steps} steps on {batch} LiPS frames and as many on {replay} of MPtrj"
    if not setting.newest_sevenn.exists():
        reason = f"{setting.newest_sevenn} does not exist; build it with: make .venv-newest-sevenn/ready"
        yield Missing(name, AGAINST, reason)
        return
    options = worker_options(setting, batch, replay, steps)
    try:
        with Worker(setting.newest_sevenn, "sevenn_worker.py", options) as worker:
            ours = our_epoch(setting, batch, replay, steps)
            measured = alternate(lambda: seconds(ours), worker.seconds, **setting.times(3), per=steps)
    except WorkerError as error:
        yield Missing(name, AGAINST, f"its worker in {setting.newest_sevenn} ended: {error}")
        return
    notes = "7net-0; a target step, a replay step with its own zero_grad, the penalty on both; no evaluation"
    yield Row(name, AGAINST, measured, TARGETS["an epoch"].on(setting), "s/pair of steps", notes)
