"""Vacancies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ase import Atoms

from ase_finetune.analysis.validation.arguments import require, require_whole
from ase_finetune.analysis.validation.crystal import largest_displacement
from ase_finetune.analysis.validation.material import (
    Material,
    NotApplicableError,
    attached,
    nearest_distance,
    repeats,
    settle,
)
from ase_finetune.analysis.validation.results import Findings, Quantity, judged


@dataclass(frozen=True)
class Vacancy:
    """One atom of each element taken out of a supercell, and the rest relaxed in the cell of the perfect crystal.

    In a crystal of one element the formation energy is E(N-1) - (N-1)/N E(N). In a compound it depends on where the
    atom goes, so the Schottky energy is given instead: one formula unit, v_i atoms of each element, leaves the
    crystal for its surface, sum_i v_i [E(N-1, i) - E(N)] + E(formula unit), all vacancies neutral and far apart.

    Parameters
    ----------
    length
        Distance between periodic images of the vacancy in Å, if possible.
    largest
        Atoms in the supercell, at most (the cell itself may have more).
    fmax, steps
        Of the relaxation.
    """

    name: ClassVar[str] = "vacancy"
    cost: ClassVar[float] = 6.0
    length: float = 8.0
    largest: int = 64
    fmax: float = 0.03
    steps: int = 100

    def __post_init__(self) -> None:
        """Refuse options that cannot be used."""
        require(self, length=0, fmax=0)
        require_whole(self, largest=1, steps=1)

    def run(self, material: Material) -> Findings:
        """Make the vacancies."""
        material.require_solid("a vacancy")
        numbers = repeats(material.relaxed, self.length, self.largest)
        perfect = attached(material.relaxed.repeat(numbers), material.calc)
        energy, size = perfect.get_potential_energy(), len(perfect)
        if size < 2:
            raise NotApplicableError(
                "the supercell has a single atom; allow more with Vacancy(length=..., largest=...)"
            )
        unit = dict(material.given.symbols.formula.reduce()[0].count())
        quantities, cost = [], 0.0
        for symbol, count in unit.items():
            removed, found = self._remove(perfect, symbol, alone=len(unit) == 1)
            quantities += found
            cost += count * (removed - energy)
        formation = cost + sum(unit.values()) * energy / size
        name = "formation energy" if len(unit) == 1 else "Schottky energy per formula unit"
        why = "" if formation > 0 else "the crystal would lose atoms by itself"
        kind = "x".join(str(number) for number in numbers)
        return Findings(
            [judged(name, formation, "eV", suspicious=why), *quantities],
            f"supercell {kind} of {size} atoms; the first atom of each element is taken out",
        )

    def _remove(self, perfect: Atoms, symbol: str, *, alone: bool) -> tuple[float, list[Quantity]]:
        prefix = "" if alone else f"{symbol}: "
        atoms = attached(perfect, perfect.calc)
        del atoms[atoms.symbols.search(symbol)[0]]
        before = atoms.positions.copy()
        unrelaxed = atoms.get_potential_energy()
        converged, _ = settle(atoms, fmax=self.fmax, steps=self.steps)
        energy = float(atoms.get_potential_energy())
        spacing, apart = nearest_distance(perfect), nearest_distance(atoms)
        moved = largest_displacement(before, atoms.positions, atoms)
        slow = "" if converged else f"forces are above {self.fmax} eV/Å after {self.steps} steps"
        far = "an atom moves by more than half the distance to its neighbour" if moved > 0.5 * spacing else ""
        fused = f"atoms come to within {apart:.2f} Å of each other" if apart < 0.7 * spacing else ""
        return energy, [
            judged(f"{prefix}energy of relaxation", energy - unrelaxed, "eV", suspicious=slow),
            judged(f"{prefix}largest displacement", moved, "Å", failed=fused, suspicious=far),
        ]
