"""Relaxing many crystals, cell and positions: relax() against a loop of ASE's FIRE, and against torch-sim's batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import FIRE

from ase_finetune import FinetunedCalculator
from ase_finetune.optimize import relax
from benchmarks.inputs import MODEL, small_crystals
from benchmarks.paired import alternate, compare, seconds
from benchmarks.peers import sevennet_calculator
from benchmarks.suite import Missing, Row, Setting, Target
from benchmarks.workers import Worker, WorkerError

TARGETS = {"200 crystals": Target(cpu=0.5, gpu=0.05)}

FMAX = 0.05  # eV/Å, on atoms and cell
LARGEST = 12  # atoms
STEPS = 500
SAME = 1e-3  # eV/atom


def crystals(setting: Setting) -> tuple[list[Atoms], str]:
    """Crystals evenly from the research data, which is sorted by size, or embedded ones; and what they are.

    The loop over 200 takes a CPU a quarter of an hour, so there are fewer of them there.
    """
    count = setting.size(2, 32, 200)
    if setting.data is None or setting.quick:
        return small_crystals(count, 4 if setting.quick else LARGEST, rattle=0.1), f"{count} displaced MPtrj crystals"
    files = [setting.data / f"crystal_pairs_{part}_initial.extxyz" for part in ("valid", "train")]
    small = [atoms for path in files for atoms in read(path, ":") if len(atoms) <= LARGEST]
    chosen = [small[index] for index in np.linspace(0, len(small) - 1, count).round().astype(int)]
    return chosen, f"{count} hypothetical crystals"


class Relaxed:
    """A way to relax structures, and where the last call of it ended: eV/atom and steps of each."""

    def __init__(self, way: Callable[[], tuple[list[float], list[int]]]) -> None:
        self._way = way
        self.energies: list[float] = []
        self.steps: list[int] = []

    def __call__(self) -> None:
        self.energies, self.steps = self._way()


def batched(structures: Sequence[Atoms], calculator: FinetunedCalculator, steps: int) -> Relaxed:
    """Ours."""

    def way() -> tuple[list[float], list[int]]:
        ends = relax(structures, calculator, "fire", cell=True, fmax=FMAX, steps=steps)
        energies = [np.nan if end.failure else end.atoms.get_potential_energy() / len(end.atoms) for end in ends]
        return energies, [end.steps for end in ends]

    return Relaxed(way)


def loop(structures: Sequence[Atoms], calculator: Any, steps: int) -> Relaxed:
    """One optimizer of ASE after the other."""

    def way() -> tuple[list[float], list[int]]:
        energies, made = [], []
        for atoms in structures:
            moving = atoms.copy()
            moving.calc = calculator
            optimizer = FIRE(FrechetCellFilter(moving), logfile=None)
            optimizer.run(fmax=FMAX, steps=steps)
            energies.append(moving.get_potential_energy() / len(moving))
            made.append(int(optimizer.nsteps))
        return energies, made

    return Relaxed(way)


def agreement(structures: Sequence[Atoms], ours: Sequence[float], peer: Sequence[float]) -> str:
    """Which structures end elsewhere; NaN, a failure, counts as different."""
    apart = np.abs(np.subtract(ours, peer))
    differing = np.flatnonzero(~(apart <= SAME))
    names = ", ".join(structures[index].get_chemical_formula() for index in differing[:5])
    more = f" ({names}{', ...' if len(differing) > 5 else ''})" if len(differing) else ""
    return f"energies differ by more than {1e3 * SAME:g} meV/atom in {len(differing)} of {len(structures)}{more}"


def against_torch_sim(
    setting: Setting, structures: Sequence[Atoms], what: str, ours: Relaxed, steps: int
) -> Row | Missing:
    """The same relaxations in a batch of torch-sim, in the environment with the newest sevenn."""
    against, python = "torch-sim's batched FIRE", setting.newest_sevenn
    if not python.exists():
        return Missing(what, against, f"{python} does not exist; build it with: make bench-peers (Python >= 3.12)")
    found: dict[str, Any] = {}

    def peer() -> float:
        found.update(worker.ask("run"))
        return float(found["seconds"])

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "structures.extxyz"
        write(path, [Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc) for a in structures])
        options = {"structures": str(path), "model": MODEL, "device": str(setting.device), "fmax": FMAX, "steps": steps}
        try:
            with Worker(python, "torchsim_worker.py", options | {"threads": torch.get_num_threads()}) as worker:
                measured = alternate(lambda: seconds(ours), peer, **(setting.times(1) | {"warmup": 0}))
        except WorkerError as error:
            return Missing(
                what, against, f"its worker in {python} ended ({error}); make bench-peers needs Python >= 3.12"
            )
    energies = [energy / len(atoms) for energy, atoms in zip(found["energies"], structures, strict=True)]
    return Row(what, against, measured, None, "s", agreement(structures, ours.energies, energies))


def run(setting: Setting) -> Iterator[Row | Missing]:
    structures, what = crystals(setting)
    steps = setting.size(2, STEPS)
    calculator = FinetunedCalculator(MODEL, device=str(setting.device))
    theirs = sevennet_calculator(setting.device)
    ours, peer = batched(structures, calculator, steps), loop(structures, theirs, steps)
    for either in (calculator, theirs):  # neither pays for the first evaluation
        either.calculate(structures[0], ["energy", "forces", "stress"])
    measured = compare(ours, peer, **(setting.times(1) | {"warmup": 0}))
    notes = f"{sum(ours.steps)} and {sum(peer.steps)} steps; {agreement(structures, ours.energies, peer.energies)}"
    target = TARGETS["200 crystals"].on(setting)
    yield Row(what, "a loop of ASE's FIRE with SevenNetCalculator", measured, target, "s", notes)
    yield against_torch_sim(setting, structures, what, ours, steps)
