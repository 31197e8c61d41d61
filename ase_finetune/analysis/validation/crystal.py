"""Equilibrium and equation of state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.fd import calculate_numerical_forces
from ase.eos import EquationOfState as Fit
from ase.geometry import find_mic
from ase.units import GPa

from ase_finetune.analysis.validation.arguments import require, require_whole
from ase_finetune.analysis.validation.material import (
    FMAX,
    Array,
    CheckFailedError,
    Material,
    attached,
    is_solid,
    settle,
)
from ase_finetune.analysis.validation.results import Findings, Quantity, judged
from ase_finetune.errors import InputError


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

    def __post_init__(self) -> None:
        """Refuse options that cannot be used."""
        require(self, volume_change=0, displacement=0)

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
        if is_solid(given) or len(given) > 1:  # a lone atom feels no force
            found.append(_force_quantity(material))
        return Findings(found, "relaxed by BFGS" + (", with its cell" if is_solid(given) else ""))


#: Å by which an atom is taken off its place to feel a force, and by which it is then moved for differences.
_OFF, _STEP = (0.06, 0.05, 0.08), 5e-3


def _force_quantity(material: Material) -> Quantity:
    """Compare the force on an atom with differences of energies, in eV/Å."""
    atoms = material.copy()
    if len(atoms) == 1:
        atoms = attached(atoms.repeat((2, 1, 1)), material.calc)  # alone in its cell it would move its images as well
    atoms.positions[0] += _OFF
    analytical = atoms.get_forces()[0]
    numerical = np.ravel(calculate_numerical_forces(atoms, eps=_STEP, iatoms=[0]))
    error, scale = float(np.abs(numerical - analytical).max()), float(np.abs(analytical).max())
    if not np.isfinite(error):
        raise CheckFailedError("force and energy of an atom taken off its place are not finite")
    allowed = 0.02 * scale + 5e-3 + 4 * material.noise.energy / _STEP
    wrong = "the force is not the derivative of the energy" if error > allowed else ""
    return judged("force against energies", error, "eV/Å", failed=wrong)


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

    def __post_init__(self) -> None:
        """Refuse options that cannot be used."""
        require(self, strain=0)
        require_whole(self, points=5)
        if self.strain >= 1:
            raise InputError(f"EquationOfState(strain={self.strain!r}): strain must be below 1")

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
        if not (outside or negative):
            material.known["bulk modulus"] = modulus / GPa
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


def largest_displacement(before: Array, after: Array, atoms: Atoms) -> float:
    """How far an atom has moved at most, in Å, the motion of all together taken off."""
    moved = np.asarray(after - before)
    moved, _ = find_mic(moved, atoms.cell, atoms.pbc)
    moved = moved - moved.mean(axis=0)
    return float(np.linalg.norm(moved, axis=1).max())
