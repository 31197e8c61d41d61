"""Neighbour lists of a batch that moves on its device, rebuilt on the CPU only when an edge may be missing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ase import Atoms
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph, collate, neighbor_list

#: A cell that shrinks by more than this in any direction is a new one.
_SMALLEST_STRETCH = 0.5


@dataclass(frozen=True)
class _Built:
    """The batch for which a graph was made."""

    graph: AtomGraph
    positions: Tensor
    cell: Tensor
    pbc: Tensor


class MovingBatch:
    """Graphs of a batch of structures given as tensors.

    As :class:`ase_finetune.graphs.SkinNeighborList`, for b structures at once; whether they have moved too far is found
    out where their tensors are.

    Parameters
    ----------
    cutoff, skin
        Å.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        if skin < 0:
            raise InputError(f"skin must not be negative, got {skin}")
        self.cutoff, self.skin = cutoff, skin
        #: Graphs built so far.
        self.rebuilds = 0
        self._built: _Built | None = None

    def update(self, positions: Tensor, cell: Tensor, pbc: Tensor, numbers: Tensor, batch: Tensor) -> AtomGraph:
        """The graph of the batch, on its device.

        Parameters
        ----------
        positions : (n, 3)
            Å.
        cell : (b, 3, 3)
            Lattice vectors as rows, Å.
        pbc : (b, 3) bool
        numbers : (n,)
        batch : (n,)
            The structure of each atom, ascending.

        Raises
        ------
        InputError
            If a structure cannot be evaluated; its position in the batch is named.
        """
        built = self._built
        if built is None or not self._is_same(built, pbc, numbers, batch) or not self._is_near(built, positions, cell):
            built = self._build(positions, cell, pbc, numbers, batch)
            self._built = built
            self.rebuilds += 1
        return built.graph.replace(positions=positions, cell=cell)

    def _is_same(self, built: _Built, pbc: Tensor, numbers: Tensor, batch: Tensor) -> bool:
        graph = built.graph
        return torch.equal(graph.numbers, numbers) and torch.equal(graph.batch, batch) and torch.equal(built.pbc, pbc)

    def _is_near(self, built: _Built, positions: Tensor, cell: Tensor) -> bool:
        """Whether no pair within the cutoff can be missing, for all structures."""
        if self.skin == 0 or positions.dtype != built.positions.dtype:
            return False
        stretch = torch.ones(len(cell), dtype=cell.dtype, device=cell.device)
        if not torch.equal(built.cell, cell):
            # x = (x_old + u) D with the deformation D of the cell: a pair shortens at most to s (d - 2 |u|), s the
            # smallest singular value of D. Structures without a cell have D = 1.
            identity = torch.eye(3, dtype=cell.dtype, device=cell.device)
            spanned = (torch.linalg.det(built.cell).abs() > 0)[:, None, None]
            deformation = torch.linalg.solve(
                torch.where(spanned, built.cell, identity), torch.where(spanned, cell, identity)
            )
            stretch = torch.linalg.svdvals(deformation)[:, -1]
            safe = torch.where((stretch > _SMALLEST_STRETCH)[:, None, None], deformation, identity)
            inverse = torch.linalg.inv(safe)
            positions = torch.einsum("ni,nij->nj", positions, inverse[built.graph.batch])
        moved = (positions - built.positions).norm(dim=1)
        # As a comparison that is False for NaN, so that a broken structure reaches the checks of a new list.
        near = stretch[built.graph.batch] * (self.cutoff + self.skin - 2 * moved) >= self.cutoff
        return bool((near & (stretch > _SMALLEST_STRETCH)[built.graph.batch]).all())

    def _build(self, positions: Tensor, cell: Tensor, pbc: Tensor, numbers: Tensor, batch: Tensor) -> _Built:
        sizes = torch.bincount(batch, minlength=len(cell)).tolist()
        parts = zip(
            positions.detach().cpu().split(sizes),
            cell.detach().cpu(),
            pbc.cpu(),
            numbers.cpu().split(sizes),
            strict=True,
        )
        graphs = []
        for index, (x, h, periodic, z) in enumerate(parts):
            atoms = Atoms(z.numpy(), positions=x.double().numpy(), cell=h.double().numpy(), pbc=periodic.numpy())
            try:
                edges = neighbor_list(atoms, self.cutoff + self.skin)
            except InputError as error:
                raise InputError(f"structure {index} of the batch: {error}") from error
            graphs.append(AtomGraph.from_atoms(atoms, self.cutoff, edges=edges))
        graph = collate(graphs).to(positions.device)
        return _Built(graph, positions.detach().clone(), cell.detach().clone(), pbc.clone())
