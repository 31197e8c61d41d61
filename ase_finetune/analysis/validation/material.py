"""The structure under test: at its own minimum of the potential, with how precise that potential is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from numpy.typing import NDArray

from ase_finetune.analysis.watching import LARGEST_VOLUME_RATIO
from ase_finetune.errors import FinetuneError

Array = NDArray[np.float64]

#: Forces (eV/Å) that a minimum may have left, if the potential's noise allows, and steps to get there.
FMAX, STEPS = 2e-3, 200


class NotApplicableError(FinetuneError):
    """A check that does not fit a structure; the message says why."""


class CheckFailedError(FinetuneError):
    """A check that came to no number, because what the potential says is not possible."""


@dataclass(frozen=True)
class Noise:
    """How much numbers change that should not: when the whole structure is moved through space.

    Attributes
    ----------
    energy
        eV of the whole structure.
    forces
        eV/Å.
    """

    energy: float
    forces: float


@dataclass
class Material:
    """A structure and what one calculator makes of it.

    Attributes
    ----------
    name
        For the tables.
    given
        As the user handed it over, without constraints and calculator.
    calc
        The calculator.
    relaxed
        At the calculator's own minimum: positions, and the cell where it is periodic in all directions. With
        the calculator attached.
    steps, converged
        Of that relaxation.
    noise
        Numerical noise at the minimum.
    seed
        For checks that draw random numbers.
    known
        Numbers that a check leaves for later ones to be compared with.
    """

    name: str
    given: Atoms
    calc: Calculator
    relaxed: Atoms
    steps: int
    converged: bool
    noise: Noise
    seed: int = 0
    known: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, atoms: Atoms, calc: Calculator, name: str, seed: int = 0) -> Material:
        """Relax a structure.

        Raises
        ------
        CheckFailedError
            If it does not stay together.
        """
        given = plain(atoms)
        relaxed = attached(given, calc)
        solid = is_solid(given)
        converged, steps = settle(relaxed, fmax=FMAX, steps=STEPS, cell=solid)
        if solid:
            ratio = relaxed.get_volume() / given.get_volume()
            if not 1 / LARGEST_VOLUME_RATIO < ratio < LARGEST_VOLUME_RATIO:
                raise CheckFailedError(f"its volume changes by a factor of {ratio:.3g} when it is relaxed")
        return cls(name, given, calc, relaxed, steps, converged, measure_noise(relaxed), seed)

    def copy(self) -> Atoms:
        """The relaxed structure with the calculator."""
        return attached(self.relaxed, self.calc)

    def require_solid(self, what: str) -> None:
        """Refuse molecules, chains and slabs, also those in a periodic box.

        Raises
        ------
        NotApplicableError
            If it is one.
        """
        if not is_solid(self.given):
            pbc = self.given.pbc.tolist()
            if not all(pbc) or self.given.cell.rank < 3:
                raise NotApplicableError(f"{what} needs a crystal, periodic in all directions; this one has pbc={pbc}")
            gaps = vacuum(self.given)
            widest = int(np.argmax(gaps))
            raise NotApplicableError(
                f"{what} needs a crystal, but there is vacuum: {gaps[widest]:.1f} Å without an atom along cell "
                f"vector {widest + 1}"
            )


def plain(atoms: Atoms) -> Atoms:
    """Numbers, positions, cell and masses alone."""
    copy = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell[:], pbc=atoms.pbc)
    if atoms.has("masses"):
        copy.set_masses(atoms.get_masses())
    for name in ("initial_magmoms", "initial_charges"):  # calculators other than ours may need them
        if atoms.has(name):
            copy.set_array(name, atoms.get_array(name))
    return copy


def attached(atoms: Atoms, calc: Calculator) -> Atoms:
    """A plain copy with the calculator."""
    copy = plain(atoms)
    copy.calc = calc
    return copy


def is_solid(atoms: Atoms) -> bool:
    """Whether it is periodic in all directions and no slab, chain or molecule in a box with vacuum."""
    return bool(atoms.pbc.all()) and bool(atoms.cell.rank == 3) and max(vacuum(atoms)) <= VACUUM


#: Å without an atom between lattice planes. Graphite has 3.4, crystals of caesium and of noble gases have less than 5.
VACUUM = 6.0


def vacuum(atoms: Atoms) -> tuple[float, float, float]:
    """The widest layer without an atom's centre in it, in Å, parallel to each pair of faces of a periodic cell."""
    places = np.sort(atoms.get_scaled_positions(wrap=True), axis=0)
    gaps = np.diff(places, axis=0, append=places[:1] + 1).max(axis=0)
    widths = gaps * face_distances(atoms)
    return float(widths[0]), float(widths[1]), float(widths[2])


def settle(atoms: Atoms, *, fmax: float, steps: int, cell: bool = False) -> tuple[bool, int]:
    """Relax atoms in place by ASE's BFGS.

    Returns
    -------
    Whether it converged, and the steps it took.

    Raises
    ------
    CheckFailedError
        If forces or positions are no longer finite, or the cell has collapsed.
    """
    volume = atoms.cell.volume
    target: Any = FrechetCellFilter(atoms) if cell else atoms
    optimizer = BFGS(target, logfile=None)
    try:
        with np.errstate(all="ignore"):
            converged = bool(optimizer.run(fmax=fmax, steps=steps))
    except (np.linalg.LinAlgError, ArithmeticError, ValueError) as error:
        # Calculators refuse what is no structure any more; any other refusal is not for us to judge.
        if isinstance(error, ValueError) and not isinstance(error, np.linalg.LinAlgError) and is_whole(atoms, volume):
            raise
        raise CheckFailedError(f"its relaxation broke down after {optimizer.nsteps} steps: {error}") from error
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.get_forces()).all()):
        raise CheckFailedError(f"positions or forces are not finite after {optimizer.nsteps} steps of relaxation")
    return converged, int(optimizer.nsteps)


def is_whole(atoms: Atoms, volume: float) -> bool:
    """Whether positions are finite, and the cell's volume has stayed near what it was (Å³)."""
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell[:]).all()):
        return False
    return volume == 0 or 1 / LARGEST_VOLUME_RATIO < atoms.cell.volume / volume < LARGEST_VOLUME_RATIO


#: Å; no lattice vectors or symmetries of anything. One alone may meet with the same rounding by chance.
_SHIFTS = ((0.1234, 0.3217, 0.2791), (-0.3931, 0.0517, 0.4423), (0.7211, -0.2663, 0.1087))


def measure_noise(atoms: Atoms) -> Noise:
    """Numerical noise of a calculator, from a structure that is only moved through space."""
    energy, forces = float(atoms.get_potential_energy()), atoms.get_forces()
    energies, changes = [], []
    for shift in _SHIFTS:
        copy = attached(atoms, atoms.calc)
        copy.positions += shift
        changes.append(float(np.abs(copy.get_forces() - forces).max()))
        energies.append(abs(float(copy.get_potential_energy()) - energy))
    return Noise(max(energies), max(changes))


def repeats(atoms: Atoms, length: float, largest: int, *, alike: bool = True) -> tuple[int, int, int]:
    """How often to repeat a cell for its faces to be ``length`` (Å) apart, with at most ``largest`` atoms.

    Directions that are alike are repeated alike, to keep the symmetry, unless that does not matter.
    """
    heights = face_distances(atoms)
    numbers = np.ones(3, dtype=int)
    while (heights * numbers).min() < length:
        shortest = heights * numbers < (heights * numbers).min() * (1 + 1e-3)
        if not alike:
            shortest &= np.arange(3) == np.argmax(shortest)
        if (numbers + shortest).prod() * len(atoms) > largest:
            break
        numbers += shortest
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def face_distances(atoms: Atoms) -> Array:
    """(3,) distances between opposite faces of the cell in Å."""
    cell = atoms.cell[:]
    return np.asarray(atoms.cell.volume / np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1))


def nearest_distance(atoms: Atoms) -> float:
    """The shortest distance between two atoms, periodic images included, in Å; infinite if there is none."""
    from ase.neighborlist import neighbor_list

    for cutoff in (4.0, 8.0, 16.0):
        distances = neighbor_list("d", atoms, cutoff)
        if len(distances):
            return float(distances.min())
    return float("inf")
