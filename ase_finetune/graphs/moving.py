"""Graphs of structures that move together: neighbour lists kept up with positions and cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase import Atoms
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs.graph import AtomGraph, collate
from ase_finetune.graphs.neighbors import SkinNeighborList


class MovingGraph:
    """The graph of a batch of structures whose positions and cells change from step to step.

    Parameters
    ----------
    structures
        Where they start; not changed.
    cutoff, skin
        Å. Edges up to ``cutoff + skin`` are kept and rebuilt for a structure when one may be missing.
    device
        Of the graphs.
    """

    def __init__(
        self,
        structures: Sequence[Atoms],
        cutoff: float,
        skin: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self._atoms = [Atoms(a.numbers, positions=a.positions, cell=a.cell[:], pbc=a.pbc) for a in structures]
        self._lists = [SkinNeighborList(cutoff, skin) for _ in structures]
        self._device = device
        self._sizes = [len(atoms) for atoms in self._atoms]
        # The graph as it was joined, and how many lists had been built then: a selection shares them.
        self._graph: AtomGraph | None = None
        self._built = 0

    @property
    def rebuilds(self) -> int:
        """Neighbour lists built so far, over all structures."""
        return sum(neighbors.rebuilds for neighbors in self._lists)

    def update(self, positions: Tensor, cell: Tensor) -> tuple[AtomGraph | None, dict[int, str]]:
        """The graph at new positions and cells.

        Parameters
        ----------
        positions : (n, 3)
            Å.
        cell : (b, 3, 3)
            Å.

        Returns
        -------
        graph
            With detached positions and cells; ``None`` if a structure cannot be evaluated.
        failures
            For each structure that cannot be evaluated, why.
        """
        edges, failures = [], {}
        for index, (x, h) in enumerate(
            zip(positions.detach().cpu().split(self._sizes), cell.detach().cpu(), strict=True)
        ):
            atoms = self._atoms[index]
            atoms.positions[:] = x.numpy()
            atoms.cell[:] = h.numpy()
            try:
                edges.append(self._lists[index].update(atoms))
            except InputError as error:
                failures[index] = str(error)
        if failures:
            self._graph = None
            return None, failures
        if self._graph is None or self.rebuilds != self._built:
            graphs = [
                AtomGraph.from_atoms(atoms, 0.0, edges=pairs) for atoms, pairs in zip(self._atoms, edges, strict=True)
            ]
            self._graph = collate(graphs).to(self._device)
            self._built = self.rebuilds
        x, h = positions.detach(), cell.detach()
        return self._graph.replace(positions=x.to(self._device), cell=h.to(self._device)), {}

    def select(self, structures: Sequence[int]) -> MovingGraph:
        """Some of the ``structures`` by their positions, with the neighbour lists they have."""
        chosen = MovingGraph([], 0.0, 0.0, self._device)
        chosen._atoms = [self._atoms[index] for index in structures]
        chosen._lists = [self._lists[index] for index in structures]
        chosen._sizes = [self._sizes[index] for index in structures]
        return chosen

    def joined(self, other: MovingGraph) -> MovingGraph:
        """The structures of this batch and of an ``other`` one, with the neighbour lists they have."""
        both = MovingGraph([], 0.0, 0.0, self._device)
        both._atoms = self._atoms + other._atoms
        both._lists = self._lists + other._lists
        both._sizes = self._sizes + other._sizes
        return both
