"""Elastic constants, and the moduli that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.fd import calculate_numerical_stress
from ase.units import GPa

from ase_finetune.analysis.validation.arguments import require
from ase_finetune.analysis.validation.material import FMAX, Array, CheckFailedError, Material, settle
from ase_finetune.analysis.validation.results import Findings, Quantity, judged


@dataclass(frozen=True)
class ElasticConstants:
    """Elastic constants with relaxed atoms: central differences of ASE's stress by strain.

    C_ij = d(sigma_i)/d(epsilon_j) in Voigt order xx, yy, zz, yz, xz, xy, at the relaxed cell, in the Cartesian axes of
    the structure, which need not be those of the crystal's symmetry. The crystal is stable
    if all eigenvalues are positive: M. Born, Math. Proc. Camb. Phil. Soc. 36, 160 (1940); F. Mouhat, F.-X. Coudert,
    Phys. Rev. B 90, 224104 (2014).

    Parameters
    ----------
    strain
        Of the differences.
    """

    name: ClassVar[str] = "elastic constants"
    cost: ClassVar[float] = 4.0
    strain: float = 5e-3

    def __post_init__(self) -> None:
        """Refuse options that cannot be used."""
        require(self, strain=0)

    def run(self, material: Material) -> Findings:
        """Differentiate."""
        material.require_solid("elasticity")
        raw = np.array([self._column(material, index) for index in range(6)]).T / GPa
        constants = 0.5 * (raw + raw.T)
        eigenvalues = np.linalg.eigvalsh(constants)
        asymmetry = float(np.abs(raw - raw.T).max())
        scale = float(np.abs(constants).max())
        unstable = "" if eigenvalues[0] > 0 else "the crystal deforms by itself (Born's criterion)"
        crooked = (
            "stress and energy do not belong together, or atoms were not relaxed" if asymmetry > 0.05 * scale else ""
        )
        bulk, shear = hill(constants) if eigenvalues[0] > 0 else (np.nan, np.nan)
        found = [
            *(Quantity(name, value, "GPa") for name, value in named_constants(constants)),
            *_others(constants),
            Quantity("bulk modulus (Hill)", bulk, "GPa"),
            Quantity("shear modulus (Hill)", shear, "GPa"),
            judged("smallest eigenvalue", float(eigenvalues[0]), "GPa", failed=unstable),
            judged("asymmetry", asymmetry, "GPa", suspicious=crooked),
            self._stress_quantity(material, scale),
        ]
        if eigenvalues[0] > 0:
            found += _bulk_moduli_compared(material, constants)
        return Findings(
            found, f"atoms relaxed at strains of {100 * self.strain:g} %; in the structure's Cartesian axes"
        )

    def _column(self, material: Material, index: int) -> Array:
        stresses = []
        for sign in (1, -1):
            atoms = self._strained(material, index, sign * self.strain)
            settle(atoms, fmax=max(FMAX, 3 * material.noise.forces), steps=100)
            stresses.append(np.asarray(atoms.get_stress()))
        if not np.isfinite(stresses).all():
            raise CheckFailedError("the stress of a strained cell is not finite")
        return np.asarray((stresses[0] - stresses[1]) / (2 * self.strain))

    def _strained(self, material: Material, index: int, size: float) -> Atoms:
        atoms = material.copy()
        atoms.set_cell(material.relaxed.cell[:] @ (np.eye(3) + voigt_strain(index, size)), scale_atoms=True)
        return atoms

    def _stress_quantity(self, material: Material, scale: float) -> Quantity:
        """Largest difference in GPa between the stress and differences of energies, in a strained cell.

        ``scale`` is the largest of the elastic constants in GPa.
        """
        atoms = self._strained(material, 3, 4 * self.strain)
        noise = material.noise.energy / atoms.get_volume() / GPa
        # Noise of differences falls with the step, what they leave out grows with its square times the stiffness.
        step = float(np.clip(0.4 * np.cbrt(noise / scale), 1e-3, 5e-3)) if scale > 0 else 5e-3
        numerical = calculate_numerical_stress(atoms, eps=step)
        error = float(np.abs(numerical - atoms.get_stress()).max() / GPa)
        if not np.isfinite(error):
            raise CheckFailedError("stress and energy of a strained cell are not finite")
        allowed = 0.02 * scale * self.strain + 0.02 + 4 * noise / step
        wrong = "the stress is not the derivative of the energy" if error > allowed else ""
        return judged("stress against energies", error, "GPa", failed=wrong)


def voigt_strain(index: int, size: float) -> Array:
    """(3, 3) symmetric strain of one Voigt component, whose shears are engineering strains."""
    strain = np.zeros((3, 3))
    if index < 3:
        strain[index, index] = size
    else:
        i, j = ((1, 2), (0, 2), (0, 1))[index - 3]
        strain[i, j] = strain[j, i] = size / 2
    return strain


def hill(constants: Array) -> tuple[float, float]:
    """Bulk and shear modulus of the polycrystal, the means of Voigt's and Reuss's.

    R. Hill, Proc. Phys. Soc. A 65, 349 (1952).
    """
    c, s = constants, np.linalg.inv(constants)
    bulk_voigt = c[:3, :3].sum() / 9
    shear_voigt = (np.trace(c[:3, :3]) - c[0, 1] - c[0, 2] - c[1, 2] + 3 * np.trace(c[3:, 3:])) / 15
    bulk_reuss = 1 / s[:3, :3].sum()
    shear_reuss = 15 / (4 * np.trace(s[:3, :3]) - 4 * (s[0, 1] + s[0, 2] + s[1, 2]) + 3 * np.trace(s[3:, 3:]))
    return float(bulk_voigt + bulk_reuss) / 2, float(shear_voigt + shear_reuss) / 2


#: Constants that are listed: the rest is zero in orthorhombic and higher classes.
_LISTED = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2), (3, 3), (4, 4), (5, 5))


def named_constants(constants: Array) -> list[tuple[str, float]]:
    """C11, C22, ... C66; three that are equal, as in cubic crystals, are listed once, as their mean."""
    values = [float(constants[i, j]) for i, j in _LISTED]
    scale = np.abs(constants).max()
    groups = [values[0:3], values[3:6], values[6:9]]
    if all(np.ptp(group) < 0.02 * scale for group in groups):
        return [(name, float(np.mean(group))) for name, group in zip(("C11", "C12", "C44"), groups, strict=True)]
    return [(f"C{i + 1}{j + 1}", value) for (i, j), value in zip(_LISTED, values, strict=True)]


def _others(constants: Array) -> list[Quantity]:
    """The largest of the constants without a line of their own, if it is more than 2 % of the largest of all."""
    rest = np.triu(constants)
    for place in _LISTED:
        rest[place] = 0.0
    i, j = (int(k) for k in np.unravel_index(np.argmax(np.abs(rest)), rest.shape))
    if abs(rest[i, j]) <= 0.02 * np.abs(constants).max():
        return []
    why = "not zero: these axes are not those of the crystal's symmetry, or that is low; moduli hold in any axes"
    return [Quantity(f"C{i + 1}{j + 1}, largest of the others", float(rest[i, j]), "GPa", "not judged", why)]


def _bulk_moduli_compared(material: Material, constants: Array) -> list[Quantity]:
    """Stress against the equation of state, if that was made before and the crystal is compressed alike all round.

    The equation of state keeps the shape of the cell, so its modulus is Voigt's; where Reuss's is another, volumes
    within some per cent are too far from the minimum in the soft directions.
    """
    known = material.known.get("bulk modulus")
    voigt, reuss = constants[:3, :3].sum() / 9, 1 / np.linalg.inv(constants)[:3, :3].sum()
    if known is None or abs(voigt - reuss) > 0.02 * voigt:
        return []
    change = 100 * (voigt / known - 1)
    far = "bulk moduli of stresses and of energies should agree" if abs(change) > 10 else ""
    return [judged("bulk modulus against that of the EOS", change, "%", suspicious=far)]
