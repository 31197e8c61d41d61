"""Naive training, one step and one epoch: ours against the trainers of sevenn and MACE.

Both sides have the same batches, loss, optimizer and rate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

from ase_finetune import FinetuneConfig
from ase_finetune.data import read_frames
from ase_finetune.losses import Loss
from ase_finetune.potentials import load_potential
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.mace import MACEPotential
from benchmarks.inputs import LIPS, MODEL, MPTRJ, RATE, batches, frames, random_mace, train, trainer
from benchmarks.paired import compare
from benchmarks.peers import MACEEpoch, sevennet_epoch
from benchmarks.suite import Missing, Row, Setting, Target

TARGETS = {"one step, one epoch": Target(cpu=1.0, gpu=0.7)}

#: Structures of a step, of 83 and of few atoms; steps of an epoch.
BATCH = {LIPS: 2, MPTRJ: 4}
STEPS = 3


def naive(loss: Loss, size: int) -> FinetuneConfig:
    """What the peers do: Adam at a constant rate, no clipping."""
    return FinetuneConfig(
        method="naive",
        batch_size=size,
        loss=loss,
        learning_rate=RATE,
        schedule="constant",
        warmup=0.0,
        clip_norm=None,
    )


def our_epoch(potential: Potential, path: Path, size: int, steps: int, loss: Loss) -> Callable[[], None]:
    """Iterations of our trainer, as `finetune(method="naive")` makes them."""
    graphs = read_frames(path).select(range(size * steps)).graphs(potential.cutoff)
    made = trainer(potential, graphs, naive(loss, size))
    return lambda: train(made, batches(size * steps, size))


def sevennet_rows(setting: Setting, path: Path, stress: bool) -> Iterator[Row]:
    size = setting.size(1, BATCH[path], 4 * BATCH[path])
    for steps in setting.size((2,), (1, STEPS)):
        potential, _ = load_potential(MODEL, device=setting.device)
        loss = Loss(stress_weight=0.01 if stress else 0.0)
        ours = our_epoch(potential, path, size, steps, loss)
        peer = sevennet_epoch(frames(path, size * steps), size, stress, setting.device)
        measured = compare(ours, peer, **setting.times(5 if steps == 1 else 3), per=steps)
        name = f"{'a step' if steps == 1 else f'an epoch of {steps} steps'} on {size} frames of {path.name}"
        target = TARGETS["one step, one epoch"].on(setting)
        yield Row(name, "sevenn's trainer", measured, target, "s/step", "7net-0, Huber loss, Adam")


def mace_rows(setting: Setting, path: Path) -> Iterator[Row]:
    size = setting.size(1, 2, 8)
    native = random_mace([3, 15, 16], tiny=setting.quick)
    what = "a tiny MACE" if setting.quick else "MACE 128x0e+128x1o"
    loss = Loss(kind="mse", stress_weight=0.0)
    for steps in setting.size((2,), (1, STEPS)):
        potential = MACEPotential(copy.deepcopy(native)).to(setting.device)
        ours = our_epoch(potential, path, size, steps, loss)
        peer = MACEEpoch(native, frames(path, size * steps), size, setting.device)
        measured = compare(ours, peer, **setting.times(3), per=steps)
        name = f"{'a step' if steps == 1 else f'an epoch of {steps} steps'} on {size} frames of {path.name}"
        target = TARGETS["one step, one epoch"].on(setting)
        yield Row(name, "MACE's trainer", measured, target, "s/step", f"{what}, mean-square loss, Adam")


def run(setting: Setting) -> Iterator[Row | Missing]:
    yield from sevennet_rows(setting, MPTRJ, stress=True)
    if not setting.quick:
        yield from sevennet_rows(setting, LIPS, stress=False)
    yield from mace_rows(setting, LIPS)
