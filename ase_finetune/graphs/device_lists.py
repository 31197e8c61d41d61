"""Neighbour lists of a whole batch in one call of nvalchemi-toolkit-ops, on the device of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from nvalchemiops.torch.neighbors import NeighborOverflowError, neighbor_list
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs import neighbors
from ase_finetune.graphs.batched_lists import BatchError, structures_on_cpu
from ase_finetune.graphs.cells import signed_volume

#: Cells of unit vectors whose volume is below are looked at closely; 1.5e-6 is the largest that check_atoms may refuse.
_SUSPICIOUS_VOLUME = 1e-3

#: So are cells with shorter vectors (Å).
_SUSPICIOUS_LENGTH = 1e-6


def neighbor_lists_at_once(
    positions: Tensor, cell: Tensor, pbc: Tensor, numbers: Tensor, sizes: Sequence[int], cutoff: float
) -> tuple[Tensor, Tensor]:
    """As :func:`ase_finetune.graphs.batched_lists.neighbor_lists`, with the structures all at once.

    What may be wrong with a structure is noticed on the device; the reason is then found by
    :func:`ase_finetune.graphs.neighbor_list` on the CPU.
    """
    batch = torch.arange(len(sizes), device=positions.device).repeat_interleave(
        torch.tensor(sizes, device=positions.device), output_size=len(positions)
    )
    parts = (positions, cell, pbc, numbers, sizes)
    normals = complete(torch.where(pbc[:, :, None], cell, 0.0))
    suspicious = _suspicious(positions, cell, torch.where(pbc[:, :, None], cell, normals), batch)
    empty = torch.tensor([size == 0 for size in sizes])
    _refuse(suspicious.cpu() | empty, parts, cutoff)
    boxed, box = _boxed(positions, cell, normals, pbc, batch, cutoff)
    edge_index, edge_shift = _pairs(boxed, box, pbc, batch, sizes, cutoff)
    _refuse(_coincident(positions, cell, edge_index, edge_shift, batch).cpu(), parts, cutoff)
    return edge_index, edge_shift


def complete(vectors: Tensor) -> Tensor:
    """Cells (b, 3, 3) whose rows of zeros are filled with unit vectors perpendicular to all others.

    Parameters
    ----------
    vectors : (b, 3, 3)
        Å; independent where they are not zero.
    """
    rows = list(vectors.unbind(dim=1))
    for k in range(3):
        missing = (rows[k] == 0).all(dim=1, keepdim=True)
        rows[k] = torch.where(missing, _perpendicular(rows[k - 2], rows[k - 1]), rows[k])
    return torch.stack(rows, dim=1)


def _perpendicular(one: Tensor, two: Tensor) -> Tensor:
    """(b, 3) unit vectors perpendicular to both vectors (b, 3), of which either may be zero."""
    axes = torch.eye(3, dtype=one.dtype, device=one.device)
    two = torch.where((two == 0).all(dim=1, keepdim=True), axes[one.abs().argmin(dim=1)], two)
    one = torch.where((one == 0).all(dim=1, keepdim=True), axes[two.abs().argmin(dim=1)], one)
    normal = torch.linalg.cross(one, two)
    unit: Tensor = normal / normal.norm(dim=1, keepdim=True)
    return unit


def _suspicious(positions: Tensor, cell: Tensor, completed: Tensor, batch: Tensor) -> Tensor:
    """(b,) whether a structure has coordinates that are not finite or a cell with hardly any volume."""
    lengths = completed.norm(dim=2)
    volume = signed_volume(completed / lengths[:, :, None]).abs()
    # As comparisons that are False for NaN.
    fine = (volume > _SUSPICIOUS_VOLUME) & (lengths > _SUSPICIOUS_LENGTH).all(dim=1) & cell.isfinite().all(2).all(1)
    broken = (~positions.isfinite().all(dim=1)).to(positions.dtype)
    suspicious: Tensor = ~fine | (positions.new_zeros(len(cell)).index_add(0, batch, broken) > 0)
    return suspicious


def _refuse(flags: Tensor, parts: tuple[Any, ...], cutoff: float) -> None:
    """Raise if structures that are flagged (b,), on the CPU, cannot be evaluated indeed; then all are looked at."""
    if not bool(flags.any()):
        return
    atoms = structures_on_cpu(*parts)
    if any(_failure(atoms[index], cutoff) for index in flags.nonzero().squeeze(1).tolist()):
        reasons = {index: _failure(one, cutoff) for index, one in enumerate(atoms)}
        raise BatchError({index: reason for index, reason in reasons.items() if reason})


def _failure(atoms: Atoms, cutoff: float) -> str | None:
    try:
        neighbors.neighbor_list(atoms, cutoff)
    except InputError as error:
        return str(error)
    return None


def _boxed(
    positions: Tensor, cell: Tensor, normals: Tensor, pbc: Tensor, batch: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """Positions in cells that end, where they are not periodic, around the atoms: the library wants a volume."""
    along = torch.einsum("ni,nki->nk", positions, normals[batch])
    index = batch[:, None].expand(-1, 3)
    lowest = along.new_zeros(pbc.shape).scatter_reduce(0, index, along, "amin", include_self=False)
    highest = along.new_zeros(pbc.shape).scatter_reduce(0, index, along, "amax", include_self=False)
    origin = torch.where(pbc, 0.0, lowest)
    moved = positions - torch.einsum("nk,nki->ni", origin[batch], normals[batch])
    box = torch.where(pbc[:, :, None], cell, (highest - lowest + cutoff)[:, :, None] * normals)
    return moved, box


def _pairs(
    positions: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor, sizes: Sequence[int], cutoff: float
) -> tuple[Tensor, Tensor]:
    bounds = torch.tensor(np.concatenate([[0], np.cumsum(sizes)]), dtype=torch.int32, device=positions.device)
    options: dict[str, Any] = {
        "cell": cell.contiguous(),
        "pbc": pbc.contiguous(),
        "batch_idx": batch.to(torch.int32),
        "batch_ptr": bounds,
        "return_neighbor_list": True,
    }
    try:
        pairs, _, shifts = neighbor_list(positions.contiguous(), cutoff, **options)
    except NeighborOverflowError as error:  # denser than it supposes
        pairs, _, shifts = neighbor_list(positions.contiguous(), cutoff, max_neighbors=error.num_neighbors, **options)
    return pairs.long(), shifts.to(positions.dtype)


def _coincident(positions: Tensor, cell: Tensor, edge_index: Tensor, edge_shift: Tensor, batch: Tensor) -> Tensor:
    """(b,) whether two atoms of a structure are closer than :data:`ase_finetune.graphs.neighbors.COINCIDENCE`."""
    i, j = edge_index
    owner = batch[i]
    vectors = positions[j] - positions[i] + torch.einsum("ei,eij->ej", edge_shift, cell[owner])
    close = (vectors.square().sum(dim=1) < neighbors.COINCIDENCE**2).to(positions.dtype)
    return positions.new_zeros(len(cell)).index_add(0, owner, close) > 0
