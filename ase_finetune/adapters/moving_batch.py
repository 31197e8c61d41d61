"""Graphs of a batch that moves on its device, handed over as tensors that may be another batch the next time."""

from __future__ import annotations

import torch
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph, MovingGraph
from ase_finetune.graphs.batched_lists import BatchError


class MovingBatch:
    """A :class:`ase_finetune.graphs.MovingGraph` for whoever gives all tensors of a batch at every step.

    Parameters
    ----------
    cutoff, skin
        Å.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        if skin < 0:
            raise InputError(f"skin must not be negative, got {skin}")
        self.cutoff, self.skin = cutoff, skin
        #: Times that edges were found anew, of one structure or more.
        self.rebuilds = 0
        self._moving: MovingGraph | None = None
        self._composition: tuple[Tensor, ...] = ()

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
        composition = (pbc, numbers, batch)
        moving, stale = self._moving, None
        if moving is not None and _alike(composition, self._composition):
            # One read tells whether it is the same batch and which lists hold.
            differ = [(new != old).any() for new, old in zip(composition, self._composition, strict=True)]
            flags = torch.cat([moving.stale(positions, cell), torch.stack(differ)]).cpu()
            stale = None if bool(flags[len(cell) :].any()) else flags[: len(cell)]
        if moving is None or stale is None:
            sizes = torch.bincount(batch, minlength=len(cell)).tolist()
            # Copies: who gives them may change them in place.
            self._composition = tuple(tensor.clone() for tensor in composition)
            moving = self._moving = MovingGraph.of_tensors(
                self._composition[1], self._composition[0], sizes, self.cutoff, self.skin
            )
        before = moving.rebuilds
        graph, failures = moving.update(positions, cell, stale)
        if graph is None:
            raise BatchError(failures)
        self.rebuilds += moving.rebuilds > before
        return graph


def _alike(one: tuple[Tensor, ...], two: tuple[Tensor, ...]) -> bool:
    """Whether tensors have the same shapes and devices; their values are not looked at."""
    return all((a.shape, a.device) == (b.shape, b.device) for a, b in zip(one, two, strict=True))
