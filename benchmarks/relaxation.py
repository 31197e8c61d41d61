"""Relaxing many crystals, cell and positions: batched relax() against a loop of ASE's FIRE with sevenn's calculator.

    python benchmarks/relaxation.py --data FOLDER [--count 64] [--threads 2] [--device cpu] [--json relaxation.json]

Each side relaxes every crystal once, in the same process with the same threads; the loop takes minutes. The data
folder holds crystal_pairs_valid_initial.extxyz; ASE_FINETUNE_DATA names it, too.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import FIRE
from paired import machine

from ase_finetune import FinetunedCalculator
from ase_finetune.optimize import relax

FMAX = 0.05  # eV/Å, on atoms and cell
LARGEST = 12  # atoms
SAME = 1e-3  # eV/atom


def crystals(folder: Path, count: int) -> list[Atoms]:
    """``count`` crystals, evenly from the whole file: it is sorted by size."""
    small = [atoms for atoms in read(folder / "crystal_pairs_valid_initial.extxyz", ":") if len(atoms) <= LARGEST]
    if count > len(small):
        raise SystemExit(f"there are {len(small)} crystals of up to {LARGEST} atoms, not {count}")
    return [small[index] for index in np.linspace(0, len(small) - 1, count).round().astype(int)]


def batched(structures: Sequence[Atoms], calculator: FinetunedCalculator, options: dict[str, Any]) -> dict[str, Any]:
    """Ours: seconds, eV/atom, steps, and which converged."""
    start = time.perf_counter()
    ends = relax(structures, calculator, "fire", cell=True, fmax=FMAX, progress=True, **options)
    seconds = time.perf_counter() - start
    energies = [np.nan if end.failure else float(end.atoms.get_potential_energy()) / len(end.atoms) for end in ends]
    return {
        "seconds": seconds,
        "energies": energies,
        "steps": [end.steps for end in ends],
        "converged": [end.converged for end in ends],
    }


def loop(structures: Sequence[Atoms], calculator: Any, steps: int) -> dict[str, Any]:
    """The same by one optimizer of ASE after the other."""
    start = time.perf_counter()
    found: dict[str, Any] = {"energies": [], "steps": [], "converged": []}
    for atoms in structures:
        moving = atoms.copy()
        moving.calc = calculator
        optimizer = FIRE(FrechetCellFilter(moving), logfile=None)
        found["converged"].append(bool(optimizer.run(fmax=FMAX, steps=steps)))
        found["energies"].append(float(moving.get_potential_energy()) / len(moving))
        found["steps"].append(int(optimizer.nsteps))
    return found | {"seconds": time.perf_counter() - start}


def tell(structures: Sequence[Atoms], ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """Print how the two compare; returns what is worth keeping."""
    for name, side in (("relax()", ours), ("loop of ASE", peer)):
        print(
            f"{name:14s}{side['seconds']:9.1f} s   {sum(side['steps'])} steps, {max(side['steps'])} at most, "
            f"{sum(side['converged'])} of {len(structures)} converged"
        )
    ratio = peer["seconds"] / ours["seconds"]
    apart = np.abs(np.subtract(ours["energies"], peer["energies"]))
    differing = np.flatnonzero(~(apart <= SAME)).tolist()  # NaN, a failure, counts as different
    print(f"relax() is {ratio:.2f} times as fast; targets: 2 on two CPU cores, 20 on a GPU")
    print(f"final energies differ by more than {1e3 * SAME:g} meV/atom in {len(differing)} of {len(structures)}")
    for index in differing:
        print(
            f"  {index:3d} {structures[index].get_chemical_formula():14s}"
            f"relax() {ours['energies'][index]:.4f} eV/atom in {ours['steps'][index]} steps, "
            f"ASE {peer['energies'][index]:.4f} in {peer['steps'][index]}"
        )
    return {"ratio": ratio, "differing": differing, "largest_difference": float(np.nanmax(apart))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"), help="folder")
    parser.add_argument("--count", type=int, default=64, help="crystals")
    parser.add_argument("--steps", type=int, default=500, help="of each, at most")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--max-edges", type=int, help="evaluated at once by relax()")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    if arguments.data is None:
        raise SystemExit("the crystals are not bundled: give their folder by --data or ASE_FINETUNE_DATA")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    structures = crystals(Path(arguments.data), arguments.count)
    ours = FinetunedCalculator("7net-0", device=arguments.device)  # before sevenn, whose import needs our guard
    from sevenn.calculator import SevenNetCalculator

    peer = SevenNetCalculator("7net-0", device=arguments.device)
    for calculator in (ours, peer):  # neither pays for the first evaluation
        calculator.calculate(structures[0], ["energy", "forces", "stress"])
    print(machine())
    print(f"{len(structures)} crystals of {min(map(len, structures))}-{max(map(len, structures))} atoms")
    options = {"steps": arguments.steps, "max_edges": arguments.max_edges}
    results = batched(structures, ours, options), loop(structures, peer, arguments.steps)
    summary = tell(structures, *results)
    if arguments.json is not None:
        sides = dict(zip(("relax", "ase"), results, strict=True))
        arguments.json.write_text(json.dumps(summary | sides | {"machine": machine()}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
