"""Graphs of structures that move together: neighbour lists kept up with positions and cells."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs.batched_lists import BatchError, neighbor_lists
from ase_finetune.graphs.cells import inverse, largest_stretch
from ase_finetune.graphs.graph import AtomGraph, collate
from ase_finetune.graphs.sending import send


class MovingGraph:
    """The graph of a batch of structures whose positions and cells change from step to step.

    Whether a neighbour list still holds every pair within the cutoff is found out where the tensors are, for all
    structures at once; the program reads b booleans per step, and nothing else while all lists hold.

    Parameters
    ----------
    structures
        Where they start; not changed.
    cutoff, skin
        Å. Edges up to ``cutoff + skin`` are kept and found anew for a structure when one may be missing. The longer
        ones are to be dropped at every evaluation (:meth:`AtomGraph.edges_within` does).
    device
        Of the graphs.

    Raises
    ------
    InputError
        If the skin is negative.
    """

    def __init__(
        self,
        structures: Sequence[Atoms],
        cutoff: float,
        skin: float,
        device: torch.device | str = "cpu",
    ) -> None:
        numbers = torch.tensor(np.concatenate([atoms.numbers for atoms in structures]), dtype=torch.int64)
        pbc = torch.tensor(np.stack([atoms.pbc for atoms in structures]))
        sizes = [len(atoms) for atoms in structures]
        there = torch.device(device)
        self._start(send(numbers, there), send(pbc, there), sizes, cutoff, skin)

    @classmethod
    def of_tensors(cls, numbers: Tensor, pbc: Tensor, sizes: Sequence[int], cutoff: float, skin: float) -> MovingGraph:
        """The same for structures given as tensors on a device.

        Parameters
        ----------
        numbers : (n,) int64
        pbc : (b, 3) bool
        sizes
            Number of atoms of each structure.
        cutoff, skin
            As for the class.
        """
        graph = cls.__new__(cls)
        graph._start(numbers, pbc, sizes, cutoff, skin)
        return graph

    def _start(self, numbers: Tensor, pbc: Tensor, sizes: Sequence[int], cutoff: float, skin: float) -> None:
        if skin < 0:
            raise InputError(f"skin must not be negative, got {skin}")
        self.cutoff, self.skin = cutoff, skin
        self._sizes = list(sizes)
        self._builds = np.zeros(len(sizes), dtype=np.int64)
        # The edges, and where the structures were when these were found: nowhere yet, which is near to nothing.
        nowhere = torch.full((), float("nan"), dtype=torch.float64, device=numbers.device)
        counts = torch.tensor(self._sizes)
        self._built = AtomGraph(
            positions=nowhere.expand(len(numbers), 3),
            cell=nowhere.expand(len(sizes), 3, 3),
            pbc=pbc,
            numbers=numbers,
            edge_index=numbers.new_zeros((2, 0)),
            edge_shift=torch.zeros((0, 3), device=numbers.device),
            batch=send(torch.repeat_interleave(counts), numbers.device),
            num_atoms=send(counts, numbers.device),
        )
        self._evaluated: AtomGraph | None = None

    @property
    def rebuilds(self) -> int:
        """Neighbour lists built so far, over all structures."""
        return int(self._builds.sum())

    def stale(self, positions: Tensor, cell: Tensor) -> Tensor:
        """(b,) booleans, where the tensors are: whether a structure needs a new list at positions and cells.

        A cell that has been deformed by D has moved atoms from x to (x + u) D. A pair of length d shortens at most to
        s (d - 2 u), with the largest length of u and the smallest singular value s of D, which is 1 over the largest
        one of its inverse.

        Parameters
        ----------
        positions : (n, 3)
            Å.
        cell : (b, 3, 3)
            Å.
        """
        built = self._built
        if self.skin == 0:
            return torch.ones(built.num_graphs, dtype=torch.bool, device=built.cell.device)
        x, h = self._exact(positions), self._exact(cell)
        same = (h == built.cell).all(dim=2).all(dim=1)
        identity = torch.eye(3, dtype=h.dtype, device=h.device)
        undo = torch.where(same[:, None, None], identity, inverse(h) @ built.cell)
        allowed = 0.5 * (self.skin - self.cutoff * (largest_stretch(undo) - 1))
        moved = ((x[:, :, None] * undo[built.batch]).sum(dim=1) - built.positions).norm(dim=1)
        # As a comparison that is False for NaN: a broken structure gets to the checks of a new list, and so does one
        # without a cell that has changed.
        near = moved <= allowed[built.batch]
        return h.new_zeros(len(h)).index_add(0, built.batch, (~near).to(h.dtype)) > 0

    def update(
        self, positions: Tensor, cell: Tensor, stale: Tensor | None = None
    ) -> tuple[AtomGraph | None, dict[int, str]]:
        """The graph at new positions and cells.

        Parameters
        ----------
        positions : (n, 3)
            Å.
        cell : (b, 3, 3)
            Å.
        stale : (b,) bool
            What :meth:`stale` says of them, on the CPU, if it has been read already.

        Returns
        -------
        graph
            With detached positions and cells; ``None`` if a structure cannot be evaluated.
        failures
            For each structure that cannot be evaluated, why.
        """
        x, h = self._exact(positions), self._exact(cell)
        renewed = self.stale(x, h).cpu() if stale is None else stale
        if bool(renewed.any()):
            try:
                self._renew(renewed, x, h)
            except BatchError as error:
                places = renewed.nonzero().squeeze(1).tolist()
                return None, {places[index]: reason for index, reason in error.failures.items()}
        if self._evaluated is None:
            # A CPU drops edges beyond the cutoff, which takes longer elsewhere than masking them.
            self._evaluated = self._built if x.device.type == "cpu" else self._built.arranged()
        return self._evaluated.replace(positions=x, cell=h), {}

    def select(self, structures: Sequence[int]) -> MovingGraph:
        """Some of the ``structures`` by their positions, with the neighbour lists they have."""
        chosen = copy.copy(self)
        chosen._built, chosen._evaluated = _selected(self._built, structures), None
        chosen._sizes = [self._sizes[index] for index in structures]
        chosen._builds = self._builds[np.array(structures, dtype=np.int64)]
        return chosen

    def joined(self, other: MovingGraph) -> MovingGraph:
        """The structures of this batch and of an ``other`` one, with the neighbour lists they have."""
        both = copy.copy(self)
        both._built, both._evaluated = collate([self._built, other._built]), None
        both._sizes = self._sizes + other._sizes
        both._builds = np.concatenate([self._builds, other._builds])
        return both

    def _exact(self, values: Tensor) -> Tensor:
        return values.detach().to(self._built.cell.device, torch.float64)

    def _renew(self, renewed: Tensor, positions: Tensor, cell: Tensor) -> None:
        """Find the edges of some structures (b booleans on the CPU), between those of the others."""
        built = self._built
        chosen = renewed.nonzero().squeeze(1).to(built.batch.device)
        structures = renewed.to(built.batch.device)
        of_atoms = structures[built.batch]
        atoms = of_atoms.nonzero().squeeze(1)
        found, shift = neighbor_lists(
            positions[atoms],
            cell[chosen],
            built.pbc[chosen],
            built.numbers[atoms],
            [self._sizes[index] for index in renewed.nonzero().squeeze(1).tolist()],
            self.cutoff + self.skin,
        )
        kept = (~of_atoms)[built.edge_index[0]].nonzero().squeeze(1)
        edge_index = torch.cat([built.edge_index[:, kept], atoms[found]], dim=1)
        order = built.batch[edge_index[0]].argsort(stable=True)
        self._built = built.replace(
            positions=torch.where(of_atoms[:, None], positions, built.positions),
            cell=torch.where(structures[:, None, None], cell, built.cell),
            edge_index=edge_index[:, order],
            edge_shift=torch.cat([built.edge_shift[kept], shift.to(built.edge_shift)])[order],
        )
        self._evaluated = None
        self._builds = self._builds + renewed.numpy()


def _selected(graph: AtomGraph, structures: Sequence[int]) -> AtomGraph:
    """The graph of some structures, without labels, in the order of their positions given."""
    chosen = torch.tensor(list(structures), dtype=torch.int64, device=graph.batch.device)
    place = torch.full((graph.num_graphs,), -1, device=chosen.device)
    place[chosen] = torch.arange(len(chosen), device=chosen.device)
    atoms, batch = _rows(place[graph.batch])
    edges, _ = _rows(place[graph.batch[graph.edge_index[0]]])
    number = torch.zeros_like(graph.batch)
    number[atoms] = torch.arange(len(atoms), device=atoms.device)
    return graph.replace(
        positions=graph.positions[atoms],
        cell=graph.cell[chosen],
        pbc=graph.pbc[chosen],
        numbers=graph.numbers[atoms],
        edge_index=number[graph.edge_index[:, edges]],
        edge_shift=graph.edge_shift[edges],
        batch=batch,
        num_atoms=graph.num_atoms[chosen],
    )


def _rows(places: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the rows whose place is not negative, ordered by it, and their places."""
    rows = (places >= 0).nonzero().squeeze(1)
    order = places[rows].argsort(stable=True)
    return rows[order], places[rows][order]
