"""Motions of a structure that cost no energy: translations, and rotations where nothing holds them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ase_finetune.graphs.neighbors import FloatArray
from ase_finetune.optimize.cell import exponential
from ase_finetune.optimize.coordinates import Coordinates


def zero_modes(coordinates: Coordinates, rows: Tensor, pbc: Tensor) -> Tensor:
    """Orthonormal zero modes of each structure.

    At a stationary point the Hessian vanishes along them, and a gradient there does not depend on the potential.

    Parameters
    ----------
    coordinates
        Of the batch.
    rows : (N, 3)
        Where.
    pbc : (b, 3) bool
        Structures without any periodic direction may rotate; those with three and a cell that relaxes
        freely rotate by their cell.

    Returns
    -------
    (m, N, 3): the k-th modes of all structures side by side; zero where a structure has fewer than m.
    """
    layout = coordinates.layout
    positions = rows.detach().cpu().numpy()
    owner = layout.owner.cpu().numpy()
    free = coordinates.free.cpu().numpy() > 0
    of_cell = _cell_rotations(coordinates, rows.detach())
    modes = np.zeros((6, *positions.shape))
    for structure in range(layout.count):
        atoms = np.flatnonzero(owner[: coordinates.num_atoms] == structure)
        found = _rigid_motions(positions[atoms], free[atoms], rotates=not bool(pbc[structure].any()))
        modes[: len(found), atoms] = found
        cell_rows = coordinates.num_atoms + 3 * structure + np.arange(3)
        for shift, rotation in enumerate(of_cell[structure]):
            modes[len(found) + shift, cell_rows] = rotation
    used = max(1, int((np.abs(modes).sum(axis=(1, 2)) > 0).sum()))
    return torch.as_tensor(modes[:used], dtype=rows.dtype, device=rows.device)


def _rigid_motions(
    positions: FloatArray, free: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], *, rotates: bool
) -> FloatArray:
    """(m, n, 3) orthonormal translations, and rotations, that leave every fixed component where it is.

    For ever, not only at first: what pulls at a fixed component would do work later on. So rotations must leave
    atoms of which a component is fixed where they are, except that those about a coordinate axis never move
    anything along it.
    """
    count = len(positions)
    centred = positions - positions.mean(axis=0)
    translations = np.array([np.tile(axis, (count, 1)) for axis in np.eye(3)])
    found = [_at_rest(translations, ~free)]
    if rotates:
        rotations = np.array([np.cross(axis, centred) for axis in np.eye(3)])
        held = ~free.all(axis=1, keepdims=True) & np.ones_like(free)
        found.append(_at_rest(np.concatenate([translations, rotations]), held))
        for axis in range(3):
            plane = [k for k in range(3) if k != axis]
            held = ~free
            held[:, plane] = held[:, plane].any(axis=1, keepdims=True)
            found.append(_at_rest(np.concatenate([translations, rotations[axis : axis + 1]]), held))
    return _orthonormal(np.concatenate(found)).reshape(-1, count, 3)


def _at_rest(generators: FloatArray, held: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> FloatArray:
    """(r, 3 n) combinations of motions (m, n, 3) with which no held component moves."""
    basis = generators.reshape(len(generators), -1)
    fixed = basis[:, held.reshape(-1)]
    if not fixed.shape[1]:
        return basis
    _, singular, right = np.linalg.svd(fixed.T)
    rank = int((singular > 1e-8 * max(1.0, singular.max(initial=0.0))).sum())
    return np.asarray(right[rank:] @ basis)


def _cell_rotations(coordinates: Coordinates, rows: Tensor) -> list[FloatArray]:
    """For each structure the orthonormal (m, 3, 3) changes of its cell's rows that only rotate it."""
    count = coordinates.layout.count
    if coordinates.cell is None:
        return [np.zeros((0, 3, 3))] * count
    logarithm = rows[coordinates.num_atoms :].reshape(-1, 3, 3) / coordinates.factor[:, None, None]
    deformation = exponential(coordinates.cell.project(logarithm))
    # Column by column the derivative of exp at L, from the upper right block of exp([[L, E], [0, L]]).
    directions = torch.eye(9, dtype=rows.dtype, device=rows.device).reshape(9, 3, 3)
    found = []
    for current, stretch in zip(logarithm, deformation, strict=True):
        blocks = torch.zeros((9, 6, 6), dtype=rows.dtype, device=rows.device)
        blocks[:, :3, :3] = blocks[:, 3:, 3:] = current
        blocks[:, :3, 3:] = directions
        jacobian = torch.matrix_exp(blocks)[:, :3, 3:].reshape(9, 9).T
        wanted = torch.stack([_generator(axis, stretch) @ stretch for axis in range(3)])
        change = torch.linalg.solve(jacobian, wanted.reshape(3, 9).T).T.reshape(3, 3, 3)
        allowed = [
            bool(torch.allclose(c, p, atol=1e-9)) for c, p in zip(change, coordinates.cell.project(change), strict=True)
        ]
        found.append(_orthonormal(change[allowed].reshape(-1, 9).cpu().numpy()).reshape(-1, 3, 3))
    return found


def _generator(axis: int, like: Tensor) -> Tensor:
    a, b = (axis + 1) % 3, (axis + 2) % 3
    generator = torch.zeros_like(like)
    generator[a, b], generator[b, a] = -1.0, 1.0
    return generator


def _orthonormal(basis: FloatArray) -> FloatArray:
    """An orthonormal basis (r, d) of what the rows (m, d) span."""
    if not len(basis):
        return basis
    _, singular, right = np.linalg.svd(basis, full_matrices=False)
    return np.asarray(right[singular > 1e-8 * max(1.0, singular.max())])
