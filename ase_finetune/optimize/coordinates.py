"""Generalised coordinates of a batch: positions and, where the cell relaxes, the logarithm of its deformation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs.neighbors import spans_volume
from ase_finetune.optimize.cell import CellOptions, exponential, full_stress, logarithmic_force
from ase_finetune.optimize.constraints import free_components
from ase_finetune.optimize.layout import Layout


def check_relaxable(atoms: Atoms, index: int, *, cell: bool) -> npt.NDArray[np.bool_]:
    """(n, 3) booleans: True where a coordinate of the structure may change.

    Parameters
    ----------
    atoms
        With its constraints.
    index
        Its position in the list, to be named.
    cell
        Whether the cell relaxes too.

    Raises
    ------
    InputError
        If a constraint is not supported, or a cell shall relax that has no volume.
    """
    # A cell that is not finite is a broken structure, which is noticed when it is evaluated.
    if cell and np.isfinite(atoms.cell[:]).all() and not (atoms.pbc.any() and spans_volume(atoms.cell[:])):
        raise InputError(f"structure {index} has no periodic cell with a volume that could relax")
    try:
        return free_components(atoms, cell=cell)
    except InputError as error:
        raise InputError(f"structure {index}: {error}") from error


@dataclass(frozen=True)
class Coordinates:
    """The map between structures and rows of coordinates, whose forces are minus the gradient of the energy.

    The first n rows are positions in the undeformed cell (Å). With a variable cell, three rows per structure
    follow: the logarithm L of the deformation times ``factor``, so that cell = cell0 exp(L)^T and
    r = x exp(L)^T. This is what :class:`ase.filters.FrechetCellFilter` presents to ASE's optimizers.

    Attributes
    ----------
    cell0 : (b, 3, 3)
        Undeformed cells, Å.
    free : (n, 3)
        1 where a position may change, 0 where a constraint fixes it.
    factor : (b,)
        Scale of the cell's rows.
    layout
        Of the rows.
    cell
        Options of the variable cell; ``None`` for fixed cells.
    """

    cell0: Tensor
    free: Tensor
    factor: Tensor
    layout: Layout
    cell: CellOptions | None

    @classmethod
    def of(
        cls, structures: Sequence[Atoms], cell: CellOptions | None, *, device: torch.device | str = "cpu"
    ) -> Coordinates:
        """Coordinates of structures as they are, in float64.

        Raises
        ------
        InputError
            If a constraint is not supported, or a cell shall relax that has no volume.
        """
        free = []
        for index, atoms in enumerate(structures):
            free.append(check_relaxable(atoms, index, cell=cell is not None))
        sizes = [len(atoms) for atoms in structures]
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        if cell is not None:
            owner = torch.cat([owner, torch.arange(len(sizes)).repeat_interleave(3)])
        factors = sizes if cell is None or cell.exp_cell_factor is None else [cell.exp_cell_factor] * len(sizes)
        return cls(
            cell0=torch.tensor(np.stack([atoms.cell[:] for atoms in structures]), dtype=torch.float64, device=device),
            free=torch.tensor(np.concatenate(free), dtype=torch.float64, device=device),
            factor=torch.tensor(factors, dtype=torch.float64, device=device),
            layout=Layout(owner.to(device), len(sizes)),
            cell=cell,
        )

    @property
    def num_atoms(self) -> int:
        """Number of atoms n over all structures."""
        return len(self.free)

    def rows(self, positions: Tensor) -> Tensor:
        """(N, 3) coordinates for positions (n, 3) in the undeformed cells."""
        if self.cell is None:
            return positions
        return torch.cat([positions, positions.new_zeros((3 * self.layout.count, 3))])

    def structure(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (n, 3) and cells (b, 3, 3) in Å."""
        if self.cell is None:
            return rows, self.cell0
        deformation = exponential(self._logarithm(rows))
        positions = torch.einsum("nj,nij->ni", rows[: self.num_atoms], deformation[self._batch])
        return positions, self.cell0 @ deformation.transpose(1, 2)

    def forces(self, rows: Tensor, forces: Tensor, stress: Tensor | None) -> Tensor:
        """(N, 3) forces on the rows.

        Parameters
        ----------
        rows : (N, 3)
        forces : (n, 3)
            eV/Å.
        stress : (b, 6)
            eV/Å³; not needed for fixed cells.
        """
        forces = forces * self.free
        if self.cell is None:
            return forces
        assert stress is not None
        logarithm = self._logarithm(rows)
        deformation = exponential(logarithm)
        volume = torch.linalg.det(self.cell0).abs() * torch.linalg.det(deformation)
        pressure = self.cell.scalar_pressure * torch.eye(3, dtype=rows.dtype, device=rows.device)
        virial = -volume[:, None, None] * (full_stress(stress) + pressure)
        on_cell = self.cell.project(logarithmic_force(logarithm, deformation, virial)) / self.factor[:, None, None]
        on_atoms = torch.einsum("ni,nij->nj", forces, deformation[self._batch])
        return torch.cat([on_atoms, on_cell.reshape(-1, 3)])

    def select(self, structures: Sequence[int]) -> tuple[Coordinates, Tensor, Tensor]:
        """Coordinates of some structures, the indices of their rows, and their own, both ascending."""
        layout, rows, kept = self.layout.select(structures)
        atoms = rows[rows < self.num_atoms]
        chosen = Coordinates(self.cell0[kept], self.free[atoms], self.factor[kept], layout, self.cell)
        return chosen, rows, kept

    def joined(self, other: Coordinates) -> tuple[Coordinates, Tensor]:
        """Coordinates of the structures of both, and the order of the rows of both, one after the other, in it."""
        owner = torch.cat([self.layout.owner, other.layout.owner + self.layout.count])
        rows = torch.arange(len(owner), device=owner.device)
        mine = rows < len(self.layout.owner)
        of_cell = torch.where(mine, rows >= self.num_atoms, rows >= len(self.layout.owner) + other.num_atoms)
        order = torch.cat([rows[~of_cell], rows[of_cell]])
        both = Coordinates(
            torch.cat([self.cell0, other.cell0]),
            torch.cat([self.free, other.free]),
            torch.cat([self.factor, other.factor]),
            Layout(owner[order], self.layout.count + other.layout.count),
            self.cell,
        )
        return both, order

    @property
    def _batch(self) -> Tensor:
        return self.layout.owner[: self.num_atoms]

    def _logarithm(self, rows: Tensor) -> Tensor:
        assert self.cell is not None
        logarithm = rows[self.num_atoms :].reshape(-1, 3, 3) / self.factor[:, None, None]
        # The identity for rows that only ever moved along projected forces; it also shields from others.
        return self.cell.project(logarithm)
