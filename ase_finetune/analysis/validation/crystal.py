"""Equilibrium, equation of state, and elastic constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.fd import calculate_numerical_stress
from ase.eos import EquationOfState as Fit
from ase.geometry import find_mic
from ase.units import GPa

from ase_finetune.analysis.validation.material import (
    FMAX,
    Array,
    CheckFailedError,
    Material,
    is_solid,
    settle,
)
from ase_finetune.analysis.validation.results import Findings, Quantity, judged


@dataclass(frozen=True)
class Equilibrium:
    """Where the structure relaxes to, and how precisely numbers are known there.

    Parameters
    ----------
    volume_change, displacement
        Changes of the volume (per cent) and of an atom's place (Å) from which on the structure given is hardly this
        potential's.
    """

    name: ClassVar[str] = "equilibrium"
    cost: ClassVar[float] = 1.0
    volume_change: float = 10.0
    displacement: float = 0.5

    def run(self, material: Material) -> Findings:
        """Judge the relaxation that has been made."""
        given, relaxed = material.given, material.relaxed
        unfinished = "" if material.converged else f"it did not reach {FMAX} eV/Å in {material.steps} steps"
        found = [judged("steps to relax", material.steps, "", suspicious=unfinished)]
        if is_solid(given):
            change = 100 * (relaxed.get_volume() / given.get_volume() - 1)
            far = "the structure given is not near this potential's own" if abs(change) > self.volume_change else ""
            found += [
                Quantity("volume per atom", relaxed.get_volume() / len(relaxed), "Å³"),
                judged("volume change", change, "%", suspicious=far),
            ]
        # In a cell that has changed, an atom has moved if its place in the cell has.
        start = given.get_scaled_positions(wrap=False) @ relaxed.cell[:] if is_solid(given) else given.positions
        moved = largest_displacement(start, relaxed.positions, relaxed)
        left = "it relaxed into another structure" if moved > self.displacement else ""
        noise = material.noise
        coarse = "" if noise.forces < FMAX else "forces change by this when the whole structure is moved through space"
        found += [
            judged("largest displacement", moved, "Å", suspicious=left),
            Quantity("noise of the energy", 1e3 * noise.energy / len(given), "meV/atom"),
            judged("noise of the forces", 1e3 * noise.forces, "meV/Å", suspicious=coarse),
        ]
        return Findings(found, "relaxed by BFGS" + (", with its cell" if is_solid(given) else ""))


@dataclass(frozen=True)
class EquationOfState:
    """Energies of scaled cells and the Birch-Murnaghan curve through them.

    The cell is scaled, atoms are relaxed in it. F. Birch, Phys. Rev. 71, 809 (1947), as :class:`ase.eos` fits it.

    Parameters
    ----------
    strain, points
        Volumes from ``1 - strain`` to ``1 + strain`` of that at equilibrium.
    """

    name: ClassVar[str] = "equation of state"
    cost: ClassVar[float] = 1.0
    strain: float = 0.06
    points: int = 7

    def run(self, material: Material) -> Findings:
        """Fit."""
        material.require_solid("an equation of state")
        volumes, energies = self._curve(material)
        try:
            fit = Fit(volumes, energies, eos="birchmurnaghan")
            volume, _, modulus = fit.fit(warn=False)
        except (RuntimeError, ValueError) as error:
            raise CheckFailedError(f"no Birch-Murnaghan curve goes through its energies: {error}") from error
        size = len(material.given)
        residual = 1e3 * float(np.sqrt(np.mean((fit.func(volumes, *fit.eos_parameters) - energies) ** 2))) / size
        depth = 1e3 * float(np.ptp(energies)) / size
        outside = "" if volumes[0] < volume < volumes[-1] else "the curve has no minimum among the volumes tried"
        negative = "" if modulus > 0 else "the crystal would collapse under pressure"
        rough = ""
        if residual > 0.02 * depth + 1e3 * material.noise.energy / size:
            rough = f"the energies are no smooth curve: they span {depth:.1f} meV/atom"
        slope = fit.eos_parameters[2]
        strange = "" if 1 < slope < 10 else "solids have 3 to 7"
        found = [
            judged("volume of the minimum", volume / size, "Å³/atom", failed=outside),
            judged("bulk modulus", modulus / GPa, "GPa", failed=negative),
            judged("its pressure derivative", slope, "", suspicious=strange),
            judged("deviation from the fit", residual, "meV/atom", suspicious=rough),
        ]
        return Findings(found, f"{self.points} volumes within {100 * self.strain:g} %, Birch-Murnaghan")

    def _curve(self, material: Material) -> tuple[Array, Array]:
        cell = material.relaxed.cell[:]
        volumes, energies = [], []
        for factor in np.linspace(1 - self.strain, 1 + self.strain, self.points):
            atoms = material.copy()
            atoms.set_cell(cell * factor ** (1 / 3), scale_atoms=True)
            settle(atoms, fmax=5 * FMAX, steps=50)
            volumes.append(atoms.get_volume())
            energies.append(atoms.get_potential_energy())
        if not np.isfinite(energies).all():
            raise CheckFailedError(f"energies of scaled cells are not finite: {energies}")
        return np.array(volumes), np.array(energies)


@dataclass(frozen=True)
class ElasticConstants:
    """Elastic constants with relaxed atoms: central differences of ASE's stress by strain.

    C_ij = d(sigma_i)/d(epsilon_j) in Voigt order xx, yy, zz, yz, xz, xy, at the relaxed cell. The crystal is stable
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

    def run(self, material: Material) -> Findings:
        """Differentiate."""
        material.require_solid("elastic constants")
        raw = np.array([self._column(material, index) for index in range(6)]).T / GPa
        constants = 0.5 * (raw + raw.T)
        eigenvalues = np.linalg.eigvalsh(constants)
        asymmetry = float(np.abs(raw - raw.T).max())
        scale = float(np.abs(constants).max())
        unstable = "" if eigenvalues[0] > 0 else "the crystal deforms by itself (Born's criterion)"
        crooked = (
            "stress and energy do not belong together, or atoms were not relaxed" if asymmetry > 0.05 * scale else ""
        )
        error = self._stress_error(material)
        wrong = "the stress is not the derivative of the energy" if error > 0.02 * scale * self.strain + 0.02 else ""
        bulk, shear = hill(constants) if eigenvalues[0] > 0 else (np.nan, np.nan)
        found = [
            *(Quantity(name, value, "GPa") for name, value in named_constants(constants)),
            Quantity("bulk modulus (Hill)", bulk, "GPa"),
            Quantity("shear modulus (Hill)", shear, "GPa"),
            judged("smallest eigenvalue", float(eigenvalues[0]), "GPa", failed=unstable),
            judged("asymmetry", asymmetry, "GPa", suspicious=crooked),
            judged("stress against energies", error, "GPa", failed=wrong),
        ]
        return Findings(found, f"atoms relaxed at strains of {100 * self.strain:g} %")

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

    def _stress_error(self, material: Material) -> float:
        """Largest difference in GPa between the stress and differences of energies, in a strained cell."""
        atoms = self._strained(material, 3, 4 * self.strain)
        # Wide enough for the differences to stand out from the noise of the energy.
        step = max(1e-4, np.sqrt(material.noise.energy / atoms.get_volume() * GPa) * 0.1)
        numerical = calculate_numerical_stress(atoms, eps=min(step, 1e-2))
        return float(np.abs(numerical - atoms.get_stress()).max() / GPa)


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


#: Constants that are told: the rest is zero in orthorhombic and higher classes.
_TOLD = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2), (3, 3), (4, 4), (5, 5))


def named_constants(constants: Array) -> list[tuple[str, float]]:
    """C11, C22, ... C66; three that are equal, as in cubic crystals, are told once, as their mean."""
    values = [float(constants[i, j]) for i, j in _TOLD]
    scale = np.abs(constants).max()
    groups = [values[0:3], values[3:6], values[6:9]]
    if all(np.ptp(group) < 0.02 * scale for group in groups):
        return [(name, float(np.mean(group))) for name, group in zip(("C11", "C12", "C44"), groups, strict=True)]
    return [(f"C{i + 1}{j + 1}", value) for (i, j), value in zip(_TOLD, values, strict=True)]


def largest_displacement(before: Array, after: Array, atoms: Atoms) -> float:
    """How far an atom has moved at most, in Å, the motion of all together taken off."""
    moved = np.asarray(after - before)
    moved, _ = find_mic(moved, atoms.cell, atoms.pbc)
    moved = moved - moved.mean(axis=0)
    return float(np.linalg.norm(moved, axis=1).max())
