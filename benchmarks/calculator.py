"""One evaluation of 7net-0: FinetunedCalculator against SevenNetCalculator, in one process.

python benchmarks/calculator.py [--device cpu] [--repeats 9]
"""

from __future__ import annotations

import argparse

import numpy as np
from ase import Atoms
from ase.build import bulk
from paired import compare, machine

from ase_finetune import FinetunedCalculator


def moving(atoms: Atoms, calculator: object) -> object:
    """A function that moves the atoms a little, as MD does, and evaluates them."""
    copy = atoms.copy()
    random = np.random.default_rng(0)

    def step() -> None:
        copy.positions += random.normal(scale=0.005, size=copy.positions.shape)
        calculator.calculate(copy, ["energy", "forces", "stress"])

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    ours = FinetunedCalculator("7net-0", device=arguments.device)  # before sevenn, whose import needs our guard
    from sevenn.calculator import SevenNetCalculator

    peer = SevenNetCalculator("7net-0", device=arguments.device)
    print(machine())
    for size in (2, 3):
        atoms = bulk("Si", cubic=True) * (size, size, size)
        atoms.rattle(0.05, seed=1)
        compare(f"{len(atoms)} Si atoms", moving(atoms, ours), moving(atoms, peer), arguments.repeats)


if __name__ == "__main__":
    main()
