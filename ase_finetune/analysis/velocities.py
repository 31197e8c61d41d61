"""Random velocities, and the temperature of atoms of which some motions are frozen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md import velocitydistribution
from ase.md.velocitydistribution import Stationary

from ase_finetune.errors import InputError

# ASE renamed it in 3.29, and warns since about the earlier name.
_NEW, _OLD = "thermalize_momenta", "MaxwellBoltzmannDistribution"
_maxwell_boltzmann = getattr(velocitydistribution, _NEW if hasattr(velocitydistribution, _NEW) else _OLD)


@dataclass(frozen=True)
class Velocities:
    """Degrees of freedom of moving atoms.

    Attributes
    ----------
    moving
        Those that carry kinetic energy.
    ase
        Those that ASE counts: it knows constraints, but no motion that is merely conserved.
    """

    moving: int
    ase: int

    def temperature(self, atoms: Atoms) -> float:
        """2 E_kin / (f k_B) in K."""
        return float(2 * atoms.get_kinetic_energy() / (self.moving * units.kB))

    def ase_temperature(self, temperature: float) -> float:
        """What ASE's thermostats have to be given in K for the atoms to have this temperature."""
        return temperature * self.moving / self.ase


def thermalize(atoms: Atoms, temperature: float, rng: np.random.Generator, *, fix_center: bool) -> Velocities:
    """Give atoms velocities of the Maxwell-Boltzmann distribution, scaled to the temperature, at rest as a whole.

    Free molecules rotate as warm ones do: a thermostat that rescales velocities exchanges energy with a rotation,
    so that one left out of the count would grow unseen. Atoms with constraints keep theirs and may drift.

    Parameters
    ----------
    atoms
        Changed.
    temperature
        K.
    rng
        Where the velocities come from.
    fix_center
        Whether to fix the centre of mass by a constraint of ASE, which then counts its degrees of freedom rightly.

    Raises
    ------
    InputError
        If nothing can move.
    """
    constrained = bool(atoms.constraints)
    if fix_center and not constrained:
        atoms.set_constraint(FixCom())
    counted = int(atoms.get_number_of_degrees_of_freedom())
    free = counted if constrained else 3 * len(atoms) - 3
    if free < 1:
        raise InputError(
            f"{atoms.get_chemical_formula()} with {len(atoms)} atoms has nothing that can move against the rest; "
            "use a supercell or release constraints"
        )
    velocities = Velocities(free, counted)
    _maxwell_boltzmann(atoms, temperature_K=temperature, rng=rng)
    if not constrained:
        Stationary(atoms, preserve_temperature=False)
    found = velocities.temperature(atoms)
    if found > 0:
        atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature / found))
    return velocities
