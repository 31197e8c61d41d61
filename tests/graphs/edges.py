"""Neighbour lists by trying everything, and as sets that can be compared."""

from __future__ import annotations

import itertools

import numpy as np
from ase import Atoms

from ase_finetune.graphs.neighbors import FloatArray, IntArray

EdgeSet = set[tuple[int, ...]]


def brute_force(atoms: Atoms, cutoff: float) -> EdgeSet:
    """All (i, j, S) with |x_j - x_i + S @ cell| < cutoff, by trying every shift that could count."""
    cell, pbc, x = np.asarray(atoms.cell[:]), atoms.pbc, atoms.positions
    reach = np.zeros(3, dtype=int)
    if pbc.any():
        # The planes of the periodic vectors are 1/|b_k| apart, b the (pseudo)reciprocal vectors.
        reciprocal = np.zeros((3, 3))
        reciprocal[pbc] = np.linalg.pinv(cell[pbc]).T
        extent = np.linalg.norm(x[None] - x[:, None], axis=2).max() + cutoff
        reach[pbc] = np.ceil(extent * np.linalg.norm(reciprocal[pbc], axis=1)).astype(int)
    found = set()
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        vectors = x[None] - x[:, None] + np.asarray(shift) @ cell
        for i, j in np.argwhere((vectors**2).sum(axis=2) < cutoff**2):
            if i != j or any(shift):
                found.add((int(i), int(j), *shift))
    return found


def as_set(edges: tuple[IntArray, FloatArray]) -> EdgeSet:
    """(i, j, S) of a neighbour list."""
    edge_index, edge_shift = edges
    rows = [(int(i), int(j), *map(int, s)) for i, j, s in zip(*edge_index, edge_shift, strict=True)]
    assert len(set(rows)) == len(rows), "an edge is listed twice"
    return set(rows)


def within(edges: tuple[IntArray, FloatArray], atoms: Atoms, cutoff: float) -> EdgeSet:
    """(i, j, S) of the edges of a neighbour list that are shorter than ``cutoff``."""
    (i, j), shift = edges
    vectors = atoms.positions[j] - atoms.positions[i] + shift @ atoms.cell[:]
    kept = (vectors**2).sum(axis=1) < cutoff**2
    return as_set((edges[0][:, kept], shift[kept]))
