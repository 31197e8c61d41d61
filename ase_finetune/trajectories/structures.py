"""Batches of structures, and how far their atoms are from where they should be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.geometry import minkowski_reduce
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs import check_atoms

# Rounds of "nearest images, then their mean": the circular mean it starts from is nearly always final.
_ROUNDS = 3


@dataclass(frozen=True)
class Structures:
    """n atoms in b structures, as tensors that may carry gradients.

    Attributes
    ----------
    positions : (n, 3)
        Å.
    cell : (b, 3, 3)
        Lattice vectors as rows, Å; vectors of directions that are not periodic have no meaning.
    pbc : (b, 3) bool
    batch : (n,) int64
        The structure each atom belongs to.
    masses : (n,)
        amu.
    """

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    masses: Tensor

    @classmethod
    def from_atoms(
        cls,
        structures: Sequence[Atoms],
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> Structures:
        """The ``structures`` of ASE as one batch, in the order given; its tensors have ``dtype`` and are on ``device``.

        Raises
        ------
        InputError
            If there are none, or one cannot be evaluated; the message gives its position in the list.
        """
        if not structures:
            raise InputError("cannot make a batch of no structures")
        for index, atoms in enumerate(structures):
            try:
                check_atoms(atoms)
            except InputError as error:
                raise InputError(f"structure {index}: {error}") from error
        sizes = [len(atoms) for atoms in structures]
        return cls(
            positions=_tensor(np.concatenate([atoms.positions for atoms in structures]), dtype, device),
            cell=_tensor(np.stack([atoms.cell[:] for atoms in structures]), dtype, device),
            pbc=_tensor(np.stack([atoms.pbc for atoms in structures]), torch.bool, device),
            batch=_tensor(np.repeat(np.arange(len(sizes)), sizes), torch.int64, device),
            masses=_tensor(np.concatenate([atoms.get_masses() for atoms in structures]), dtype, device),
        )

    @property
    def num_structures(self) -> int:
        """Number of structures b."""
        return self.cell.shape[0]

    @property
    def num_atoms(self) -> Tensor:
        """(b,) number of atoms of each structure."""
        return torch.bincount(self.batch, minlength=self.num_structures)

    @property
    def volume(self) -> Tensor:
        """(b,) cell volumes in Å³; 0 where a structure has no cell."""
        determinant: Tensor = torch.linalg.det(self.cell)
        return determinant.abs()

    def sum(self, values: Tensor) -> Tensor:
        """(b, ...) sums over the atoms of each structure of (n, ...) ``values``."""
        zeros = values.new_zeros((self.num_structures, *values.shape[1:]))
        return zeros.index_add(0, self.batch, values)


def displacements(
    structures: Structures,
    target: Structures,
    *,
    weights: Tensor | None = None,
    remove_drift: bool = True,
    align: bool = False,
) -> Tensor:
    """(n, 3) vectors from the atoms of the target to those of the structures in Å, differentiable.

    Fractional coordinates are compared and the difference is mapped with the target's cell, so a pure
    strain displaces nothing. Along periodic directions the nearest image counts (in a
    Minkowski-reduced basis, so skewed cells are fine too); which image that is carries no gradient.
    Directions that are not periodic are Cartesian, normal to the periodic ones, whatever cell
    vectors they have.

    The drift is the weighted mean displacement of each structure. The images are chosen after it has
    been taken off, beginning with a circular mean, to which images do not matter: a structure that
    moved as a whole, by half a cell say, is not displaced at all.

    Parameters
    ----------
    structures, target
        The same atoms in the same order. Gradients flow to positions and cells of both.
    weights : (n,)
        Positive weights of the atoms in the drift and the alignment, such as masses; all alike if not given.
    remove_drift
        Take off the drift. Not for structures with fixed atoms, which say where the structure is.
    align
        Rotate molecules onto their target (Kabsch: the proper rotation with the least weighted sum of
        squares, without a gradient of its own). The gradient of that weighted sum is exact
        nevertheless, since it is stationary in the rotation; that of other functions is not.

    Raises
    ------
    InputError
        If structures and target are not of the same atoms, cells and periodic directions, or a
        structure to be aligned is periodic or keeps its drift.
    """
    check_match(structures, target)
    if weights is not None and (weights.shape != structures.masses.shape or not bool((weights > 0).all())):
        raise InputError(f"weights must be positive, one for each of {len(structures.masses)} atoms")
    if align:
        _check_alignable(structures, remove_drift)
    share = _shares(structures, weights)
    cell, target_cell = complete_cells(structures, target), complete_cells(target, target)
    apart = _fractional(structures, cell) - _fractional(target, target_cell)
    apart = apart - _lattice_shifts(apart, target_cell, structures, share if remove_drift else None)
    if remove_drift:
        apart = apart - structures.sum(share[:, None] * apart)[structures.batch]
    moved = _times(apart, target_cell, structures)
    return moved if not align else moved + _turned(structures, target, share)


def check_match(structures: Structures, target: Structures) -> None:
    """Refuse to compare structures that do not have the same numbers of atoms and periodic directions.

    Raises
    ------
    InputError
        Naming the structure by its position in the batch.
    """
    sizes, wanted = structures.num_atoms.tolist(), target.num_atoms.tolist()
    if len(sizes) != len(wanted):
        raise InputError(f"{len(sizes)} structures cannot be compared with {len(wanted)} targets")
    for index, (size, want) in enumerate(zip(sizes, wanted, strict=True)):
        if size != want:
            raise InputError(f"structure {index} has {size} atoms, its target {want}")
    if not torch.equal(structures.batch, target.batch):
        raise InputError("the atoms of structures and targets are in another order of structures")
    differing = (structures.pbc != target.pbc).any(dim=1)
    if bool(differing.any()):
        index = int(differing.to(torch.int64).argmax())
        ends = f"{structures.pbc[index].tolist()}, its target {target.pbc[index].tolist()}"
        raise InputError(f"structure {index} has pbc={ends}")


def complete_cells(structures: Structures, guide: Structures) -> Tensor:
    """(b, 3, 3) cells in Å with unit vectors normal to the periodic ones where a direction is not periodic.

    With one periodic direction the choice of the normals is free: it is made by ``guide``, so that
    structures with the same guide have the same one.
    """
    if bool(structures.pbc.all()):
        return structures.cell
    rows = zip(structures.cell, structures.pbc.tolist(), guide.cell.detach(), strict=True)
    return torch.stack([_complete(cell, pbc, guiding) for cell, pbc, guiding in rows])


def _complete(cell: Tensor, pbc: list[bool], guide: Tensor) -> Tensor:
    known = [k for k in range(3) if pbc[k]]
    if len(known) == 3:
        return cell
    if not known:
        return torch.eye(3, dtype=cell.dtype, device=cell.device)
    rows = list(cell)
    if len(known) == 1:
        k = known[0]
        axis = torch.zeros_like(cell[0])
        axis[guide[k].abs().argmin()] = 1
        rows[(k + 1) % 3] = _unit(torch.linalg.cross(axis, rows[k]))
        known.append((k + 1) % 3)
    k = 3 - sum(known)
    rows[k] = _unit(torch.linalg.cross(rows[(k + 1) % 3], rows[(k + 2) % 3]))
    return torch.stack(rows)


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / torch.linalg.vector_norm(vector)
    return unit


def _times(rows: Tensor, matrices: Tensor, structures: Structures) -> Tensor:
    """Each atom's row times the matrix of its structure."""
    if len(matrices) == 1:
        return rows @ matrices[0]
    return torch.einsum("ni,nij->nj", rows, matrices[structures.batch])


def _fractional(structures: Structures, cell: Tensor) -> Tensor:
    inverse: Tensor = torch.linalg.inv(cell)
    return _times(structures.positions, inverse, structures)


def _shares(structures: Structures, weights: Tensor | None) -> Tensor:
    """(n,) weights that add up to 1 in each structure."""
    weights = torch.ones_like(structures.masses) if weights is None else weights
    return weights / structures.sum(weights)[structures.batch]


@torch.no_grad()
def _lattice_shifts(apart: Tensor, cell: Tensor, structures: Structures, share: Tensor | None) -> Tensor:
    """(n, 3) integers that, taken off fractional differences, leave nearest images round their mean.

    Without ``share`` (no drift to remove) they are nearest images round zero.
    """
    periodic = structures.pbc[structures.batch]
    if not bool(periodic.any()):
        return torch.zeros_like(apart)
    basis = _reduced_basis(cell, structures.pbc)
    reduced = basis @ cell
    apart = _times(apart, torch.linalg.inv(basis).round(), structures)
    drift = torch.zeros_like(cell[:, 0]) if share is None else _circular_mean(apart, structures, share)
    shifts = _nearest(apart - drift[structures.batch], reduced, structures)
    for _ in range(0 if share is None else _ROUNDS - 1):
        assert share is not None
        drift = structures.sum(share[:, None] * (apart - shifts))
        shifts = _nearest(apart - drift[structures.batch], reduced, structures)
    return _times(shifts, basis, structures)


def _reduced_basis(cell: Tensor, pbc: Tensor) -> Tensor:
    """(b, 3, 3) integers: rows of the Minkowski-reduced cells in terms of the cells' own."""
    pairs = zip(cell.double().cpu().numpy(), pbc.cpu().numpy(), strict=True)
    return _tensor(np.stack([minkowski_reduce(c, p)[1] for c, p in pairs]), cell.dtype, cell.device)


def _circular_mean(apart: Tensor, structures: Structures, share: Tensor) -> Tensor:
    """(b, 3) means of fractional coordinates: of angles along periodic directions, plain along others."""
    angle = 2 * torch.pi * apart
    sine, cosine = (structures.sum(share[:, None] * part) for part in (angle.sin(), angle.cos()))
    plain = structures.sum(share[:, None] * apart)
    return torch.where(structures.pbc, torch.atan2(sine, cosine) / (2 * torch.pi), plain)


def _nearest(apart: Tensor, reduced: Tensor, structures: Structures) -> Tensor:
    """(n, 3) integers to take off so that the rest is as short as it can be (exact in a reduced cell)."""
    periodic = structures.pbc[structures.batch].to(apart.dtype)
    rounded = apart.round() * periodic
    neighbors = torch.tensor([*itertools.product((0, -1, 1), repeat=3)], dtype=apart.dtype, device=apart.device)
    steps = neighbors * periodic[:, None]
    vectors = torch.einsum("nki,nij->nkj", (apart - rounded)[:, None] - steps, reduced[structures.batch])
    best = vectors.square().sum(dim=2).argmin(dim=1)
    return rounded + steps[torch.arange(len(best), device=best.device), best]


def _turned(structures: Structures, target: Structures, share: Tensor) -> Tensor:
    """(n, 3) what the rotation onto the target adds to the displacements, Å."""
    centred, wanted = (s.positions - s.sum(share[:, None] * s.positions)[s.batch] for s in (structures, target))
    with torch.no_grad():
        correlation = structures.sum(share[:, None, None] * centred[:, :, None] * wanted[:, None, :])
        u, _, vh = torch.linalg.svd(correlation)
        # The reflection with the least loss, where the best orthogonal matrix is not a rotation.
        u = torch.cat([u[..., :2], u[..., 2:] * torch.linalg.det(u @ vh)[:, None, None].sign()], dim=2)
        turn = u @ vh - torch.eye(3, dtype=u.dtype, device=u.device)
    return _times(centred, turn, structures)


def _check_alignable(structures: Structures, remove_drift: bool) -> None:
    periodic = structures.pbc.any(dim=1)
    if bool(periodic.any()):
        index = int(periodic.to(torch.int64).argmax())
        raise InputError(f"align=True is for molecules, but structure {index} is periodic")
    if not remove_drift:
        raise InputError("align=True turns molecules round their centres and needs remove_drift=True")


def _tensor(array: object, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    # torch.tensor copies: a batch must not change when its atoms do.
    return torch.tensor(array, dtype=dtype, device=device)
