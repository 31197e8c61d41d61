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

from ase_finetune.analysis.validation.arguments import require, require_whole
from ase_finetune.analysis.validation.material import Array
from ase_finetune.analysis.validation.results import Findings, Quantity, judged

#: Energy (eV) below which a dip in a wall is rounding.
_ROUNDING = 1e-3

#: No two atoms are bound at less than this times the sum of their covalent radii.
SHORTEST_BOND = 0.5


#: What to think of a hole behind a high wall. Tried with the pairs within Si, O, C, S, P, Li; Fe, Cu, Al, Ti; Na, Cl,
#: Zn; and H, N, F.
_NORMAL = (
    "holes behind such walls are normal for universal models: untouched 7net-0 has them in 39 of 43 pairs of elements, "
    "inwards of 0.3 to 0.6 times the sum of covalent radii behind 5 to 340 eV (Si-Si: 1.14 Å, 15 eV); what counts is "
    "whether a wall is lower than before training (--against)"
)


@dataclass(frozen=True)
class Dimers:
    """Energies of two lone atoms at short distance, for all pairs of elements.

    Inwards of the innermost minimum the energy must rise. Where it falls, atoms that collide hard enough fuse: hot or
    long MD ends there, whatever the errors on a test set. A minimum at less than half the sum of the covalent radii
    is no bond (the shortest ones, of V2 and Cr2, are 0.6 of it), but such a hole with a bottom.

    Parameters
    ----------
    shortest
        Å; nearer than this, no simulation should come.
    start
        Where the curves begin, in sums of covalent radii.
    points
        Of each curve.
    wall
        eV. Energies that fall behind a higher wall than this are no more than suspicious: no atom in a simulation of
        condensed matter gets over it.
    """

    name: ClassVar[str] = "dimers"
    cost: ClassVar[float] = 1.0
    shortest: float = 0.5
    start: float = 0.7
    points: int = 24
    wall: float = 5.0

    def __post_init__(self) -> None:
        """Refuse options that cannot be used."""
        require(self, shortest=0, start=SHORTEST_BOND, wall=0)
        require_whole(self, points=4)

    def run(self, calc: Calculator, symbols: Sequence[str]) -> Findings:
        """Judge all pairs of some elements."""
        quantities = []
        for pair in combinations_with_replacement(sorted(set(symbols)), 2):
            quantities += self._judge(calc, pair)
        note = f"from {self.start:g} times the sum of covalent radii to {self.shortest:g} Å"
        has_hole = any(quantity.verdict == "suspicious" for quantity in quantities)
        return Findings(quantities, note, _NORMAL if has_hole else "")

    def distances(self, pair: tuple[str, str]) -> Array:
        """(points,) Å, ascending."""
        outer = self.start * radii(pair)
        return np.linspace(min(self.shortest, 0.6 * outer), outer, self.points)

    def _judge(self, calc: Calculator, pair: tuple[str, str]) -> list[Quantity]:
        name, distances = "-".join(pair), self.distances(pair)
        with np.errstate(all="ignore"):  # what overflows is noticed and reported below
            energies = np.array([float(dimer(pair, r, calc).get_potential_energy()) for r in distances])
        if not np.isfinite(energies).all():
            at = distances[~np.isfinite(energies)].max()
            return [Quantity(f"{name} wall", float("nan"), "eV", "failed", f"no finite energy at {at:.2f} Å")]
        error, scale = self._force_error(calc, pair, distances)
        wrong = "the force is not the derivative of the energy" if error > 0.02 * scale + 0.02 else ""
        return [
            self._wall(name, distances, energies, SHORTEST_BOND * radii(pair)),
            judged(f"{name} force against energies", error, "eV/Å", failed=wrong),
        ]

    def _wall(self, name: str, distances: Array, energies: Array, shortest_bond: float) -> Quantity:
        """The height of the wall over the innermost minimum, down to where the energy begins to fall inwards."""
        bond = innermost_minimum(distances, energies, shortest_bond)
        bottom = energies[bond]
        falling = np.flatnonzero(energies[:bond] < energies[1 : bond + 1] - _ROUNDING)
        if not len(falling):
            return judged(f"{name} wall", float(energies[0] - bottom), "eV")
        top = int(falling[-1]) + 1
        height = float(energies[top] - bottom)
        lowest = float(energies[:top].min() - bottom)
        where = f"inwards of {distances[top]:.2f} Å the energy falls"
        if lowest < 0:
            where += f" to {-lowest:.3g} eV below that at {distances[bond]:.2f} Å: atoms that get over the wall fuse"
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


def innermost_minimum(distances: Array, energies: Array, shortest_bond: float) -> int:
    """Index of the minimum at the shortest distance (ascending, Å) that is not below that of any bond.

    The outermost point counts if energies (eV) rise from it; it stands for the minimum that is further out. So it
    does where the energy falls all the way, which is then no wall at all.
    """
    last = len(energies) - 1
    for index in np.flatnonzero(distances >= shortest_bond):
        i = int(index)
        if 0 < i < last and energies[i - 1] > energies[i] + _ROUNDING and energies[i + 1] >= energies[i]:
            return i
    return last


def radii(pair: tuple[str, str]) -> float:
    """The sum of covalent radii in Å."""
    return float(sum(covalent_radii[atomic_numbers[symbol]] for symbol in pair))


def dimer(pair: tuple[str, str], distance: float, calc: Calculator) -> Atoms:
    """Two atoms in empty space, along z and away from the origin."""
    atoms = Atoms(list(pair), positions=[(1.0, 2.0, 3.0), (1.0, 2.0, 3.0 + distance)])
    atoms.calc = calc
    return atoms
