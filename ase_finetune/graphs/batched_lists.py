"""Neighbour lists of a batch of structures, where its tensors are."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs.neighbors import FindPairs, check_atoms, neighbor_list
from ase_finetune.graphs.sending import send


class BatchError(InputError):
    """Some structures of a batch cannot be evaluated.

    Parameters
    ----------
    failures
        Why, by position in the batch.
    """

    def __init__(self, failures: dict[int, str]) -> None:
        index = min(failures)
        super().__init__(f"structure {index} of the batch: {failures[index]}")
        self.failures = failures


def neighbor_lists(
    positions: Tensor, cell: Tensor, pbc: Tensor, numbers: Tensor, sizes: Sequence[int], cutoff: float
) -> tuple[Tensor, Tensor]:
    """All pairs of atoms closer than ``cutoff``, structure by structure, as :func:`neighbor_list` finds them.

    On a GPU they are found there, all structures at once, if nvalchemi-toolkit-ops is installed
    (``pip install "ase_finetune[gpu]"``); else one after the other on the CPU.

    Parameters
    ----------
    positions : (n, 3) float64
        Å, without gradient.
    cell : (b, 3, 3) float64
        Lattice vectors as rows, Å; those of directions that are not periodic do not matter.
    pbc : (b, 3) bool
    numbers : (n,)
        Atomic numbers, to name atoms in messages.
    sizes
        Number of atoms of each structure.
    cutoff
        Radius in Å.

    Returns
    -------
    edge_index : (2, e) int64
        Indices i and j of each pair, counted over the whole batch; the structures in their order.
    edge_shift : (e, 3) float64
        Integer cell shifts S: the pair's vector is ``x[j] - x[i] + S @ cell``.

    Raises
    ------
    BatchError
        If structures cannot be evaluated, as :func:`neighbor_list` says of each.
    """
    if positions.device.type == "cuda" and has_device_library():
        from ase_finetune.graphs.device_lists import neighbor_lists_at_once

        return neighbor_lists_at_once(positions, cell, pbc, numbers, sizes, cutoff)
    return neighbor_lists_in_turn(positions, cell, pbc, numbers, sizes, cutoff)


@cache
def has_device_library() -> bool:
    """Whether the library that finds neighbours on a GPU is installed; it is imported when it is used."""
    return importlib.util.find_spec("nvalchemiops") is not None


def find_pairs_on(device: torch.device) -> FindPairs:
    """What finds the pairs of one structure: on a GPU, if the library for it is installed; else on the CPU."""
    return OnDevice(device) if device.type == "cuda" and has_device_library() else neighbor_list


@dataclass(frozen=True)
class OnDevice:
    """As :func:`neighbor_list`, with the edges found on a device and left there."""

    device: torch.device

    def __call__(self, atoms: Atoms, cutoff: float) -> tuple[Tensor, Tensor]:
        """Edges of ``atoms`` within ``cutoff`` in Å, as tensors."""
        check_atoms(atoms)
        geometry = torch.tensor(atoms.positions), torch.tensor(atoms.cell[:])[None], torch.tensor(atoms.pbc)[None]
        positions, cell, pbc = (send(value, self.device) for value in geometry)
        try:
            return neighbor_lists(positions, cell, pbc, torch.tensor(atoms.numbers), [len(atoms)], cutoff)
        except BatchError as error:
            raise InputError(error.failures[0]) from error


def neighbor_lists_in_turn(
    positions: Tensor, cell: Tensor, pbc: Tensor, numbers: Tensor, sizes: Sequence[int], cutoff: float
) -> tuple[Tensor, Tensor]:
    """As :func:`neighbor_lists`, one structure after the other on the CPU."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    indices, shifts, failures = [], [], {}
    for structure, atoms in enumerate(structures_on_cpu(positions, cell, pbc, numbers, sizes)):
        try:
            edge_index, edge_shift = neighbor_list(atoms, cutoff)
        except InputError as error:
            failures[structure] = str(error)
            continue
        indices.append(edge_index + starts[structure])
        shifts.append(edge_shift)
    if failures:
        raise BatchError(failures)
    device = positions.device
    return (
        torch.from_numpy(np.concatenate(indices, axis=1)).to(device),
        torch.from_numpy(np.concatenate(shifts)).to(device),
    )


def structures_on_cpu(
    positions: Tensor, cell: Tensor, pbc: Tensor, numbers: Tensor, sizes: Sequence[int]
) -> list[Atoms]:
    """The structures of a batch one by one."""
    parts = zip(
        positions.cpu().split(list(sizes)),
        cell.cpu().numpy(),
        pbc.cpu().numpy(),
        numbers.cpu().split(list(sizes)),
        strict=True,
    )
    return [Atoms(z.numpy(), positions=x.numpy(), cell=h, pbc=periodic) for x, h, periodic, z in parts]
