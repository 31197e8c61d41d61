"""Structures, calculators and runs that the tests of optimizers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.filters import FrechetCellFilter

from ase_finetune import FinetunedCalculator
from ase_finetune.potentials import Potential
from tests import morse

FloatArray = npt.NDArray[np.float64]


def calculator(potential: Potential | None = None, **options: Any) -> FinetunedCalculator:
    """The Morse potential (or another one) in float64."""
    return FinetunedCalculator(potential or morse.pretrained().double(), device="cpu", dtype="float64", **options)


def cluster(seed: int = 0) -> Atoms:
    """A molecule of five atoms without a cell."""
    positions = [(0, 0, 0), (2.1, 0.2, 0), (-0.4, 2.3, 0.3), (0.1, 0.4, 2.5), (2.0, 2.2, 0.6)]
    atoms = Atoms("Si2OSiO", positions=positions)
    atoms.positions += np.random.default_rng(seed).normal(scale=0.1, size=(5, 3))
    return atoms


def strained(seed: int = 0) -> Atoms:
    """A rattled crystal of eight atoms in a sheared cell."""
    atoms = morse.oxide(1, seed)[0]
    strain = np.random.default_rng(seed).normal(scale=0.03, size=(3, 3))
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
    return atoms


def small_cell(seed: int = 0) -> Atoms:
    """Two atoms in a skewed cell, rattled."""
    atoms = Atoms("SiO", cell=[[0, 2.1, 2.2], [2.0, 0.1, 2.1], [2.2, 2.0, 0]], pbc=True)
    atoms.positions[1] = atoms.cell[:].sum(axis=0) / 2
    atoms.positions += np.random.default_rng(seed).normal(scale=0.2, size=(2, 3))
    return atoms


STRUCTURES = {
    "silicon": morse.silicon(1, 0)[0],
    "oxide": morse.oxide(1, 1)[0],
    "cluster": cluster(),
    "strained": strained(),
    "small": small_cell(),
}


def same(target: Atoms) -> Atoms:
    return target


def run(
    optimizer: Any,
    atoms: Atoms,
    steps: int = 50,
    *,
    wrap: Callable[[Atoms], Any] = same,
    calc: Any = None,
    **options: Any,
) -> FloatArray:
    """(steps + 1, n + 3, 3) positions and cells of a run from a copy of ``atoms``, fewer if it converges.

    Converged to rounding, that is: beyond that ASE's LBFGS divides by zero.
    """
    atoms = atoms.copy()
    atoms.calc = calculator() if calc is None else calc
    driver = optimizer(wrap(atoms), logfile=None, **options)
    frames = [np.concatenate([atoms.positions, atoms.cell[:]]) for _ in driver.irun(fmax=1e-7, steps=steps)]
    assert len(frames) > min(steps, 10)
    return np.array(frames)


def cell_filter(**options: Any) -> Callable[[Atoms], Any]:
    """Wrap atoms into ASE's filter of the cell."""
    return lambda atoms: FrechetCellFilter(atoms, **options)
