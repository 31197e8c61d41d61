"""Ours against the peers on the same work in the same process: MD, training, relaxing, Fisher information, BPTT."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ase import Atoms

from ase_finetune import FinetunedCalculator
from benchmarks.gpu import fast_training, relaxing
from benchmarks.gpu.comparing import paired
from benchmarks.gpu.models import accelerations, crystal, native_mace, shared
from benchmarks.gpu.stage import Bench, Task
from benchmarks.md import dynamics_row, moving
from benchmarks.paired import seconds
from benchmarks.peers import mace_calculator, sevennet_calculator
from benchmarks.suite import Target

#: Largest ratios of an MD step that are good enough on a GPU, by number of atoms.
GOALS = {8: 0.2, 64: 0.3, 216: 0.5, 512: 0.7, 4096: 0.8}

#: Seconds between two looks at the clock, and steps between them.
REPEAT, STEPS = 0.4, (3, 50)


def tasks(bench: Bench) -> Iterator[Task]:
    """The most telling size of everything first."""
    first, *others = bench.size((8,), (64, 8), (64, 8, 216, 512, 4096))
    yield from dynamics(bench, "7net-0", first)
    yield from fast_training.step(bench)
    yield from relaxing.loop(bench)
    yield from dynamics(bench, "mace", first)
    yield from fast_training.reewc(bench)
    yield from fast_training.fisher(bench)
    yield from fast_training.bptt(bench)
    for name in ("7net-0", "mace"):
        for atoms in others:
            yield from dynamics(bench, name, atoms)
    yield from relaxing.torch_sim(bench)


def dynamics(bench: Bench, model: str, atoms: int) -> Iterator[Task]:
    """A step of molecular dynamics, with every way to accelerate it."""
    for suffix, options in accelerations(bench.on_gpu).items():
        yield f"md {model} {atoms}{suffix}", functools.partial(_dynamics, bench, model, atoms, options)


def _dynamics(bench: Bench, model: str, atoms: int, options: Mapping[str, Any]) -> dict[str, Any]:
    ours, theirs, against = calculators(bench, model, options)
    start = crystal(atoms)
    steps = 1 if bench.quick else steps_for(start, theirs)
    row = dynamics_row(bench.setting, start, (ours, theirs), against, Target(None), steps)
    more = {"unit": row.unit, "against": against, "notes": row.notes, "steps": steps}
    return paired(row.measured.ours, row.measured.peer, bench, GOALS.get(atoms), **more)


def calculators(bench: Bench, model: str, options: Mapping[str, Any]) -> tuple[FinetunedCalculator, Any, str]:
    """One of ours of its own, the peer's, and the peer's name."""
    name = "tiny-mace" if model == "mace" and bench.quick else model
    ours = FinetunedCalculator(shared(name, bench.device), device=str(bench.device), **options)
    return ours, peer(name, bench.device), "MACECalculator" if model == "mace" else "SevenNetCalculator"


@functools.cache
def peer(name: str, device: torch.device) -> Any:
    """The calculator of the model's own package; it keeps nothing from one structure to the next."""
    if name in ("mace", "tiny-mace"):
        return mace_calculator(native_mace(name == "tiny-mace"), device)
    return sevennet_calculator(device)


def steps_for(start: Atoms, calculator: Any) -> int:
    """Steps of the peer that take about :data:`REPEAT` seconds."""
    _, run = moving(start, calculator, 2)
    run()  # warm
    each = seconds(run) / 2
    return max(STEPS[0], min(STEPS[1], round(REPEAT / each)))
