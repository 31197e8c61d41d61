"""Phonons, by phonopy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ase import Atoms

from ase_finetune.analysis.validation.arguments import require, require_whole
from ase_finetune.analysis.validation.material import Array, Material, NotApplicableError, attached, repeats
from ase_finetune.analysis.validation.results import Findings, Quantity, judged
from ase_finetune.errors import BackendNotInstalledError

#: sqrt(eV/Å²/amu) / 2 pi in THz.
_TO_THZ = 15.633302


@dataclass(frozen=True)
class Phonons:
    """Harmonic frequencies at Gamma of the cell, and of a supercell, which are those the supercell can show.

    Forces of displaced atoms by phonopy (A. Togo, J. Phys. Soc. Jpn. 92, 012001 (2023)), those at the minimum taken
    off; the acoustic sum rule is measured first and then imposed.

    Parameters
    ----------
    length
        Of the supercell in Å, if possible.
    largest
        Atoms in the supercell, at most (the cell itself may have more).
    displacement
        Å.
    tolerance
        Imaginary frequencies (THz) that are no more than suspicious.
    most
        Displaced supercells that are evaluated, at most.
    """

    name: ClassVar[str] = "phonons"
    cost: ClassVar[float] = 4.0
    length: float = 8.0
    largest: int = 64
    displacement: float = 0.02
    tolerance: float = 0.3
    most: int = 200

    def __post_init__(self) -> None:
        """Refuse options that cannot be used."""
        require(self, length=0, displacement=0, tolerance=0)
        require_whole(self, largest=1, most=0)

    @staticmethod
    def require_phonopy() -> None:
        """Check that phonopy is installed.

        Raises
        ------
        BackendNotInstalledError
            If it is not.
        """
        try:
            import phonopy  # noqa: F401 - only whether it can be imported
        except ImportError as error:
            raise BackendNotInstalledError(
                "phonons need phonopy: pip install 'ase_finetune[validate]', or leave 'phonons' out of checks"
            ) from error

    def run(self, material: Material) -> Findings:
        """Displace atoms."""
        material.require_solid("a phonon calculation")
        self.require_phonopy()
        numbers = repeats(material.relaxed, self.length, self.largest)
        phonons = _phonopy(material.relaxed, numbers)
        phonons.generate_displacements(distance=self.displacement)
        supercells = phonons.supercells_with_displacements
        if len(supercells) > self.most:
            raise NotApplicableError(
                f"it takes {len(supercells)} evaluations of {len(supercells[0])} atoms; allow it with "
                f"Phonons(most={len(supercells)}), or give a smaller or more symmetric cell"
            )
        origin = _origin(phonons.supercell)
        rest = self._forces(material, phonons.supercell, origin)
        phonons.forces = [self._forces(material, cell, origin) - rest for cell in supercells]
        phonons.produce_force_constants(show_drift=False)
        residual = float(np.abs(phonons.force_constants.sum(axis=1)).max())
        phonons.symmetrize_force_constants(show_drift=False)
        kind = "x".join(str(number) for number in numbers)
        return Findings(
            self._judge(material, phonons, numbers, residual),
            f"supercell {kind} of {len(phonons.supercell)} atoms, {len(supercells)} displacements by phonopy",
        )

    def _judge(
        self, material: Material, phonons: Any, numbers: tuple[int, int, int], residual: float
    ) -> list[Quantity]:
        noise = _TO_THZ * np.sqrt(material.noise.forces / self.displacement / material.relaxed.get_masses().min())
        frequencies = _frequencies(phonons, commensurate(numbers))
        highest = float(frequencies.max())
        # The acoustic modes at Gamma are zero by the sum rule that was imposed.
        optical = np.delete(frequencies[0], np.argsort(np.abs(frequencies[0]))[:3])
        found = []
        if len(optical):
            found.append(self._stable("lowest optical frequency at Γ", optical.min(), noise))
        if len(frequencies) > 1:
            lowest = min([frequencies[1:].min(), *optical])
            found.append(self._stable("lowest frequency of the supercell", lowest, noise))
        broken = (
            "forces do not add up to zero" if residual > 0.05 + 10 * material.noise.forces / self.displacement else ""
        )
        return [
            *found,
            Quantity("highest frequency", highest, "THz"),
            judged("violation of the sum rule", residual, "eV/Å²", suspicious=broken),
        ]

    def _stable(self, name: str, frequency: float, noise: float) -> Quantity:
        limit = -max(self.tolerance, 2 * noise)
        imaginary = "imaginary (shown as negative): atoms leave their places"
        return judged(
            name,
            round(float(frequency), 4),
            "THz",
            failed=imaginary if frequency < limit else "",
            suspicious=imaginary + ", or noise" if frequency < -max(0.05, noise) else "",
        )

    def _forces(self, material: Material, cell: Any, origin: Sequence[int]) -> Array:
        atoms = Atoms(cell.symbols, positions=cell.positions, cell=cell.cell, pbc=True)
        atoms.set_masses(cell.masses)
        _keep_electrons(material.relaxed, atoms, origin)
        return np.asarray(attached(atoms, material.calc).get_forces())


def commensurate(numbers: tuple[int, int, int]) -> list[list[float]]:
    """The wave vectors, in reciprocal lattice vectors of the cell, of waves that fit into a supercell."""
    grid = np.indices(numbers).reshape(3, -1).T / numbers
    return [[float(value) for value in point] for point in grid]


def _origin(supercell: Any) -> list[int]:
    """(n,) atoms of the cell that those of the supercell are images of."""
    return [int(supercell.u2u_map[first]) for first in supercell.s2u_map]


def _keep_electrons(cell: Atoms, supercell: Atoms, origin: Sequence[int]) -> None:
    """Give a supercell the initial moments and charges of its cell."""
    for name in ("initial_magmoms", "initial_charges"):
        if cell.has(name):
            supercell.set_array(name, cell.get_array(name)[list(origin)])


def _frequencies(phonons: Any, points: list[list[float]]) -> Array:
    """(q, m) THz; imaginary ones are negative."""
    phonons.run_qpoints(points)
    return np.asarray(phonons.qpoints.frequencies)


def _phonopy(atoms: Atoms, numbers: tuple[int, int, int]) -> Any:
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=atoms.cell[:],
        scaled_positions=atoms.get_scaled_positions(),
        masses=atoms.get_masses(),
        # They take part in the symmetry: atoms with opposite moments are displaced apart.
        magnetic_moments=atoms.get_initial_magnetic_moments() if atoms.has("initial_magmoms") else None,
    )
    # The cell as it was given is what Gamma refers to; relaxed positions are symmetric to a thousandth of an Å only.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # supercells of low symmetry only take more displacements
        return Phonopy(cell, supercell_matrix=np.diag(numbers), primitive_matrix=np.eye(3), symprec=1e-3)
