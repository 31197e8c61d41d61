"""Whether memory stays flat: 2,000 evaluations of changing structures, 500 steps of reEWC training.

    python -m benchmarks.reliability.memory [--quick] [--output FILE]

The resident set after a warm-up of a quarter is compared with that at the end, and so is the number of live tensors.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from ase_finetune import FinetuneConfig, FinetunedCalculator
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials import Potential
from benchmarks.inputs import MODEL, RATE, flat_penalty, train, trainer
from benchmarks.reliability.common import Check, options, quiet, record
from benchmarks.workers import MIB, resident

GROWTH = 2.0  # %


@dataclass(frozen=True)
class Samples:
    """What was in use as work went on: bytes of resident memory, live tensors."""

    steps: list[int]
    memory: list[int]
    tensors: list[int]

    @property
    def growth(self) -> float:
        """Per cent of resident memory, from the second quarter to the last."""
        before, after = (statistics.median(part) for part in self._parts(self.memory))
        return 100 * (after / before - 1)

    @property
    def new_tensors(self) -> float:
        """Live tensors more in the last quarter than in the second."""
        before, after = (max(part) for part in self._parts(self.tensors))
        return after - before

    def _parts(self, values: list[int]) -> tuple[list[int], list[int]]:
        quarter = max(1, len(values) // 4)
        return values[quarter : 2 * quarter], values[-quarter:]


def watch(work: Callable[[int], object], steps: int, every: int) -> Samples:
    """Do the work ``steps`` times and look at memory in between."""
    found = Samples([], [], [])
    for step in range(steps):
        work(step)
        if step % every == every - 1:
            gc.collect()
            found.steps.append(step + 1)
            found.memory.append(resident("VmRSS"))
            # Not isinstance(), which wakes objects that import something on first use.
            found.tensors.append(sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects()))
    return found


def evaluations(calculator: FinetunedCalculator, steps: int, every: int) -> Samples:
    """Every call has other positions, every 20th another cell, every 50th other elements or another number of atoms."""
    random = np.random.default_rng(0)
    kinds = itertools.cycle([bulk("Si", cubic=True), _oxide(), bulk("Si"), bulk("Si") * (2, 1, 1)])
    current = [next(kinds)]

    def work(step: int) -> None:
        if step % 50 == 49:
            current[0] = next(kinds).copy()
        atoms = current[0]
        if step % 20 == 19:
            atoms.set_cell(atoms.cell * (1 + 0.005 * random.normal()), scale_atoms=True)
        moved = atoms.copy()
        moved.positions += random.normal(scale=0.02, size=moved.positions.shape)
        moved.calc = calculator
        moved.get_potential_energy()
        moved.get_forces()
        moved.get_stress()

    return watch(work, steps, every)


def training(potential: Potential, steps: int, every: int) -> Samples:
    """reEWC: steps on labelled frames, each followed by one on replay, with a penalty."""
    calculator = FinetunedCalculator(potential, device=str(potential.device))
    new, old = (
        [_labelled(atoms, calculator, potential) for atoms in structures]
        for structures in (_rattled(bulk("Si", cubic=True), 8), _rattled(_oxide(), 8))
    )
    config = FinetuneConfig(batch_size=2, learning_rate=RATE, schedule="constant", warmup=0.0)
    made = trainer(potential, new, config, old, flat_penalty(potential))
    batches = itertools.cycle([[0, 1], [2, 3], [4, 5], [6, 7]])
    return watch(lambda _: train(made, [next(batches)]), steps, every)


def _oxide() -> Atoms:
    atoms = bulk("Si", cubic=True, a=4.9)
    atoms.symbols = "SiOSiOSiOSiO"
    return atoms


def _rattled(atoms: Atoms, count: int) -> list[Atoms]:
    structures = [atoms.copy() for _ in range(count)]
    for seed, structure in enumerate(structures):
        structure.rattle(0.05, seed=seed)
    return structures


def _labelled(atoms: Atoms, calculator: FinetunedCalculator, potential: Potential) -> AtomGraph:
    (result,) = calculator.calculate_many([atoms])
    labels = {name: result[name] for name in ("energy", "forces", "stress")}
    return AtomGraph.from_atoms(atoms, potential.cutoff).with_labels(**labels)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = options(__doc__, "memory.json").parse_args(argv)
    quiet()
    sizes = {
        "evaluations": (40, 4) if arguments.quick else (2000, 50),
        "training": (16, 2) if arguments.quick else (500, 20),
    }
    passed = []
    for name, (steps, every) in sizes.items():
        if name == "evaluations":
            found = evaluations(FinetunedCalculator(MODEL), steps, every)
        else:
            found = training(FinetunedCalculator(MODEL).potential, steps, every)
        checks = [
            # A few calls are all warm-up.
            Check(f"growth of memory, {steps} {name}", found.growth, "%", None if arguments.quick else GROWTH),
            Check(f"new live tensors, {steps} {name}", found.new_tensors, "", None if arguments.quick else 0),
            Check("resident memory at the end", found.memory[-1] / MIB, "MiB"),
        ]
        passed.append(record(arguments.output, f"memory {name}", checks, vars(found), arguments.quick))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
