"""Differentiable distances between relaxed structures and their targets, one number per structure.

Square roots are safe: a distance below rounding is 0 and has the gradient 0, not NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.options import check_types
from ase_finetune.trajectories.structures import Structures, check_match, complete_cells, displacements

__all__ = [
    "StructureLoss",
    "Structures",
    "cell_strain",
    "delta_q",
    "displacements",
    "energy_error",
    "log_volume_ratio",
    "rmsd",
]

# Distances below this multiple of the machine epsilon (in their own units) are rounding.
_RESOLUTION = 100


def delta_q(structures: Structures, target: Structures, *, remove_drift: bool = True, align: bool = False) -> Tensor:
    """(b,) mass-weighted distances ``sqrt(sum_j m_j |dx_j|²)`` in Å sqrt(amu).

    The configuration coordinate of defect physics: A. Alkauskas et al., New J. Phys. 16, 073026 (2014).

    Parameters
    ----------
    structures, target
        As for :func:`displacements`; the masses are those of ``structures``.
    remove_drift
        Take off the displacement of the centre of mass.
    align
        Rotate molecules onto their target.

    Raises
    ------
    InputError
        As :func:`displacements`.
    """
    moved = displacements(structures, target, weights=structures.masses, remove_drift=remove_drift, align=align)
    return _root(structures.sum(structures.masses * moved.square().sum(dim=1)))


def rmsd(structures: Structures, target: Structures, *, remove_drift: bool = True, align: bool = False) -> Tensor:
    """(b,) root mean square displacements ``sqrt(sum_j |dx_j|² / n)`` in Å, all atoms alike.

    Parameters
    ----------
    structures, target
        As for :func:`displacements`.
    remove_drift
        Take off the mean displacement, of all atoms alike.
    align
        Rotate molecules onto their target.

    Raises
    ------
    InputError
        As :func:`displacements`.
    """
    moved = displacements(structures, target, remove_drift=remove_drift, align=align)
    return _root(structures.sum(moved.square().sum(dim=1)) / structures.num_atoms)


def cell_strain(structures: Structures, target: Structures) -> Tensor:
    """(b,) Frobenius norms of the Green-Lagrange strain E = (F^T F - 1) / 2, dimensionless.

    F takes the target's cell to the structure's. E does not change with a rotation of either, and is
    the usual strain where it is small. Directions that are not periodic do not count: a slab has its
    strain in the plane, a molecule none.

    Parameters
    ----------
    structures, target
        Batches of b structures.

    Raises
    ------
    InputError
        If the structures do not belong to the targets.
    """
    check_match(structures, target)
    cell, wanted = complete_cells(structures, target), complete_cells(target, target)
    # By the difference of the metrics, which is exactly 0 for equal cells; F^T F - 1 is rounding.
    metric = cell @ cell.transpose(1, 2) - wanted @ wanted.transpose(1, 2)
    inverse = torch.linalg.inv(wanted)
    strain = 0.5 * inverse @ metric @ inverse.transpose(1, 2)
    return _root(strain.square().sum(dim=(1, 2)))


def log_volume_ratio(structures: Structures, target: Structures) -> Tensor:
    """(b,) ln(V / V_target), with its sign; of areas for slabs and lengths for wires, 0 for molecules.

    Parameters
    ----------
    structures, target
        Batches of b structures.

    Raises
    ------
    InputError
        If the structures do not belong to the targets.
    """
    check_match(structures, target)
    own, wanted = (torch.linalg.slogdet(complete_cells(s, target)).logabsdet for s in (structures, target))
    ratio: Tensor = own - wanted
    return ratio


def energy_error(structures: Structures, energy: Tensor, target_energy: Tensor) -> Tensor:
    """(b,) ``|E - E_target| / n`` in eV/atom; 0, with the gradient 0, where the target energy is NaN (missing).

    Parameters
    ----------
    structures
        Batch that the energies belong to.
    energy, target_energy : (b,)
        eV.

    Raises
    ------
    InputError
        If there is not one energy per structure.
    """
    for name, values in (("energy", energy), ("target_energy", target_energy)):
        if values.shape != (structures.num_structures,):
            raise InputError(f"{name} has shape {tuple(values.shape)}, expected ({structures.num_structures},)")
    missing = target_energy.isnan()
    error = (energy - target_energy.masked_fill(missing, 0.0)).abs() / structures.num_atoms
    return error.masked_fill(missing, 0.0)


@dataclass(frozen=True)
class StructureLoss:
    """Weighted sum of distances between relaxed structures and their targets, and of the final energy.

    Attributes
    ----------
    delta_q
        Per Å sqrt(amu) of the mass-weighted distance.
    rmsd
        Per Å of the root mean square displacement.
    strain
        Per unit of the cell's strain.
    volume
        Per unit of abs(ln(V / V_target)).
    energy
        Per eV/atom of the final energy.
    remove_drift
        Do not count a displacement of the whole structure. Set it to False with fixed atoms.
    align
        Do not count a rotation of the whole structure (molecules only).
    """

    delta_q: float = 0.0
    rmsd: float = 1.0
    strain: float = 1.0
    volume: float = 0.0
    energy: float = 0.0
    remove_drift: bool = True
    align: bool = False

    def __post_init__(self) -> None:
        check_types(self, "loss.")
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise InputError(f"the weight of {name} must be finite and not negative, got {weight}")
        if not any(self.weights.values()):
            raise InputError("all weights of the structure loss are 0: there is nothing to train on")
        if self.align and not self.remove_drift:
            raise InputError("align=True turns molecules round their centres and needs remove_drift=True")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term, by its name."""
        return {name: getattr(self, name) for name in _TERMS}

    def __call__(
        self,
        structures: Structures,
        target: Structures,
        energy: Tensor | None = None,
        target_energy: Tensor | None = None,
    ) -> Tensor:
        """(b,) loss of each structure.

        Parameters
        ----------
        structures, target
            The same atoms in the same order.
        energy, target_energy : (b,)
            Of the relaxed structures, eV; needed if the energy has a weight. A missing target is NaN.

        Raises
        ------
        InputError
            If energies are needed and missing, or structures and targets do not belong together.
        """
        if self.energy > 0 and (energy is None or target_energy is None):
            missing = "energy" if energy is None else "target_energy"
            raise InputError(f"the loss has an energy weight of {self.energy} and needs {missing}")
        total = structures.positions.new_zeros(structures.num_structures)
        for name, weight in self.weights.items():
            if weight > 0:
                total = total + weight * self._term(name, structures, target, energy, target_energy)
        return total

    def terms(
        self,
        structures: Structures,
        target: Structures,
        energy: Tensor | None = None,
        target_energy: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Each term without its weight, (b,), whatever its weight is; the energy's only if energies are given.

        Parameters
        ----------
        structures, target
            Batches of b structures.
        energy, target_energy : (b,)
            eV; NaN for a missing target.
        """
        known = [name for name in _TERMS if name != "energy" or not (energy is None or target_energy is None)]
        return {name: self._term(name, structures, target, energy, target_energy) for name in known}

    def _term(
        self, name: str, structures: Structures, target: Structures, energy: Tensor | None, target_energy: Tensor | None
    ) -> Tensor:
        if name == "energy":
            assert energy is not None
            assert target_energy is not None
            return energy_error(structures, energy, target_energy)
        if name == "strain":
            return cell_strain(structures, target)
        if name == "volume":
            return log_volume_ratio(structures, target).abs()
        distance = delta_q if name == "delta_q" else rmsd
        return distance(structures, target, remove_drift=self.remove_drift, align=self.align)


_TERMS = ("delta_q", "rmsd", "strain", "volume", "energy")


def _root(square: Tensor) -> Tensor:
    """Square root that is 0, with the gradient 0, below rounding."""
    known = square > (_RESOLUTION * torch.finfo(square.dtype).eps) ** 2
    return torch.where(known, square, 1.0).sqrt() * known
