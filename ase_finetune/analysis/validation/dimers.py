"""Two atoms that come close: is there a wall?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.fd import calculate_numerical_forces
from ase.data import atomic_numbers, covalent_radii

from ase_finetune.analysis.validation.material import Array
from ase_finetune.analysis.validation.results import Findings, Quantity, judged

#: Energy (eV) below which a dip in a wall is rounding.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Dimers:
    """Energies of two lone atoms at short distance, for all pairs of elements.

    From 0.7 times the sum of the covalent radii inwards the energy must rise. Where it falls, atoms that collide hard
    enough fuse: hot or long MD ends there, whatever the errors on a test set.

    Parameters
    ----------
    shortest
        Å; nearer than this, no simulation should come.
    start
        Where the wall must have begun, in sums of covalent radii.
    points
        Of each curve.
    wall
        eV. Energies that fall behind a higher wall than this are told as suspicious only: no atom in a simulation of
        condensed matter gets over it.
    """

    name: ClassVar[str] = "dimers"
    cost: ClassVar[float] = 1.0
    shortest: float = 0.5
    start: float = 0.7
    points: int = 24
    wall: float = 5.0

    def run(self, calc: Calculator, symbols: Sequence[str]) -> Findings:
        """Judge all pairs of some elements."""
        quantities = []
        for pair in combinations_with_replacement(sorted(set(symbols)), 2):
            quantities += self._judge(calc, pair)
        return Findings(quantities, f"from {self.start:g} times the sum of covalent radii to {self.shortest:g} Å")

    def distances(self, pair: tuple[str, str]) -> Array:
        """(points,) Å, ascending."""
        outer = self.start * float(sum(covalent_radii[atomic_numbers[symbol]] for symbol in pair))
        return np.linspace(min(self.shortest, 0.6 * outer), outer, self.points)

    def _judge(self, calc: Calculator, pair: tuple[str, str]) -> list[Quantity]:
        name, distances = "-".join(pair), self.distances(pair)
        with np.errstate(all="ignore"):  # what overflows is found and told below
            energies = np.array([float(dimer(pair, r, calc).get_potential_energy()) for r in distances])
        if not np.isfinite(energies).all():
            at = distances[~np.isfinite(energies)].max()
            return [Quantity(f"{name} wall", float("nan"), "eV", "failed", f"no finite energy at {at:.2f} Å")]
        error, scale = self._force_error(calc, pair, distances)
        wrong = "the force is not the derivative of the energy" if error > 0.02 * scale + 0.02 else ""
        return [
            self._wall(name, distances, energies),
            judged(f"{name} force against energies", error, "eV/Å", failed=wrong),
        ]

    def _wall(self, name: str, distances: Array, energies: Array) -> Quantity:
        """The height of the wall over the outermost distance, down to where the energy begins to fall inwards."""
        outer = energies[-1]
        falling = np.flatnonzero(energies[:-1] < energies[1:] - _ROUNDING)
        if not len(falling):
            return judged(f"{name} wall", float(energies[0] - outer), "eV")
        top = int(falling[-1]) + 1
        height = float(energies[top] - outer)
        lowest = float(energies[:top].min() - outer)
        where = f"inwards of {distances[top]:.2f} Å the energy falls"
        if lowest < 0:
            where += f" to {-lowest:.3g} eV below its start: atoms that get over the wall fuse"
        reachable = lowest < 0 and height < self.wall
        return judged(f"{name} wall", height, "eV", failed=where if reachable else "", suspicious=where)

    def _force_error(self, calc: Calculator, pair: tuple[str, str], distances: Array) -> tuple[float, float]:
        errors, forces = [], []
        for r in distances[[len(distances) // 2, -1]]:
            atoms = dimer(pair, r, calc)
            # The step suits single precision, too: energies of a dimer are some eV, known to 1e-6 eV.
            numerical = calculate_numerical_forces(atoms, eps=2e-3, iatoms=[1], icarts=[2])
            analytical = atoms.get_forces()[1, 2]
            errors.append(abs(float(np.ravel(numerical)[0]) - analytical))
            forces.append(abs(analytical))
        return float(max(errors)), float(max(forces))


def dimer(pair: tuple[str, str], distance: float, calc: Calculator) -> Atoms:
    """Two atoms in empty space, along z and away from the origin."""
    atoms = Atoms(list(pair), positions=[(1.0, 2.0, 3.0), (1.0, 2.0, 3.0 + distance)])
    atoms.calc = calc
    return atoms
