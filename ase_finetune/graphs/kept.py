"""The graph of one structure that moves, kept on its device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms

from ase_finetune.graphs.batched_lists import find_pairs_on
from ase_finetune.graphs.graph import AtomGraph
from ase_finetune.graphs.neighbors import SkinNeighborList
from ase_finetune.graphs.sending import send


class KeptGraph:
    """The graph of a structure from step to step.

    While its neighbour list holds, the graph stays where it is: only positions, and a cell that moves, are sent.

    Parameters
    ----------
    cutoff, skin
        Å, as of :class:`SkinNeighborList`.
    device
        Of the graphs.
    """

    def __init__(self, cutoff: float, skin: float, device: torch.device) -> None:
        self.neighbors = SkinNeighborList(cutoff, skin, find_pairs_on(device))
        self._device = device
        self._graph: AtomGraph | None = None
        # The structure whose numbers and cell the graph has, and the edges it was made of.
        self._atoms = Atoms()
        self._edges: Any = None

    def update(self, atoms: Atoms) -> AtomGraph:
        """The graph of ``atoms``, without labels.

        Raises
        ------
        InputError
            If the structure cannot be evaluated; see :func:`neighbor_list`.
        """
        edges, graph = self.neighbors.update(atoms), self._graph
        if graph is None or edges is not self._edges or not np.array_equal(self._atoms.numbers, atoms.numbers):
            graph = AtomGraph.from_atoms(atoms, self.neighbors.cutoff, edges=edges).to(self._device)
            self._edges, self._atoms = edges, Atoms(atoms.numbers, cell=atoms.cell[:])
        else:
            graph = graph.replace(positions=send(torch.tensor(atoms.positions), self._device))
            if not np.array_equal(self._atoms.cell[:], atoms.cell[:]):
                graph = graph.replace(cell=send(torch.tensor(atoms.cell[:])[None], self._device))
                self._atoms.cell[:] = atoms.cell[:]
        self._graph = graph
        return graph
