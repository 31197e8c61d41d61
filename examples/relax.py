"""Relaxation with a potential: positions of the sulfide electrolyte by FIRE.

    python examples/relax.py [model] [--short]

`model` is a name ("7net-0") or a folder written by fine-tuning ("runs/lips/model").
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase.calculators.calculator import Calculator
from ase.io import read
from ase.optimize import FIRE

from ase_finetune import FinetunedCalculator

DATA = Path(__file__).parent / "data"


def main(calculator: Calculator, output: str | Path = "runs/relax", steps: int = 100) -> bool:
    """Relax to 0.1 eV/Å; returns whether that was reached."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    atoms = read(DATA / "lips_valid.extxyz", index=-1)
    atoms.calc = calculator
    start = atoms.get_potential_energy()
    optimizer = FIRE(atoms, trajectory=str(folder / "relax.traj"), logfile=str(folder / "relax.log"))
    converged = bool(optimizer.run(fmax=0.1, steps=steps))
    force = np.linalg.norm(atoms.get_forces(), axis=1).max()
    gain = (start - atoms.get_potential_energy()) / len(atoms)
    print(
        f"FIRE: {optimizer.nsteps} steps, largest force {force:.3f} eV/Å, {1e3 * gain:.1f} meV/atom lower, "
        f"trajectory in {folder / 'relax.traj'}"
    )
    return converged


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="7net-0", help="name or saved folder")
    parser.add_argument("--short", action="store_true", help="two steps only")
    arguments = parser.parse_args()
    main(FinetunedCalculator(arguments.model), steps=2 if arguments.short else 100)
