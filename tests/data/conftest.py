"""Structures and frame sets that the tests of this room share."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator


def salt(seed: int, symbols: str = "Na4Cl4", spread: float = 0.1) -> Atoms:
    """A distorted rock-salt cube of 8 atoms without labels."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.symbols = symbols
    atoms.rattle(spread, seed=seed)
    return atoms


def labelled(seed: int, symbols: str = "Na4Cl4", **labels: object) -> Atoms:
    """The same with random labels in a SinglePointCalculator, as ASE's readers give them."""
    atoms = salt(seed, symbols)
    rng = np.random.default_rng(seed)
    values = {"energy": -20.0 + rng.normal(), "forces": rng.normal(size=(8, 3)), "stress": 0.01 * rng.normal(size=6)}
    atoms.calc = SinglePointCalculator(atoms, **(values | labels))
    return atoms


@pytest.fixture
def trajectory() -> list[Atoms]:
    """Ten labelled frames of one trajectory."""
    return [labelled(seed) for seed in range(10)]
