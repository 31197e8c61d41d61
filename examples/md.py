"""Molecular dynamics with a potential: NVT (Langevin) of the sulfide electrolyte.

    python examples/md.py [model] [--short]

`model` is a name ("7net-0") or a folder written by fine-tuning ("runs/lips/model").
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import units
from ase.calculators.calculator import Calculator
from ase.io import read
from ase.md.langevin import Langevin

from ase_finetune import FinetunedCalculator

DATA = Path(__file__).parent / "data"


def main(calculator: Calculator, output: str | Path = "runs/md", femtoseconds: int = 50) -> float:
    """Run MD at 600 K with 1 fs steps; returns the mean temperature of the second half in K."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    atoms = read(DATA / "lips_valid.extxyz", index=0)
    atoms.calc = calculator
    random = np.random.default_rng(0)
    # Maxwell-Boltzmann; ASE's own function for it changed its name with 3.29.
    scale = np.sqrt(units.kB * 600 * atoms.get_masses()[:, None])
    atoms.set_momenta(scale * random.normal(size=(len(atoms), 3)))
    files = {"trajectory": str(folder / "md.traj"), "logfile": str(folder / "md.log")}
    dynamics = Langevin(
        atoms, 1 * units.fs, temperature_K=600, friction=0.01 / units.fs, fixcm=False, rng=random, **files
    )
    temperatures: list[float] = []
    dynamics.attach(lambda: temperatures.append(atoms.get_temperature()))
    dynamics.run(femtoseconds)
    mean = float(np.mean(temperatures[len(temperatures) // 2 :]))
    print(f"MD: {femtoseconds} fs at 600 K, mean temperature {mean:.0f} K, trajectory in {folder / 'md.traj'}")
    return mean


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="7net-0", help="name or saved folder")
    parser.add_argument("--short", action="store_true", help="two steps only")
    arguments = parser.parse_args()
    main(FinetunedCalculator(arguments.model), femtoseconds=2 if arguments.short else 50)
