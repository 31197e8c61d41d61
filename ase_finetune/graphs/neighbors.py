"""Neighbour lists by vesin, with a Verlet skin for moving atoms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.data import chemical_symbols
from vesin import NeighborList

from ase_finetune.errors import InputError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: A function like :func:`neighbor_list`; its results may be tensors.
FindPairs = Callable[[Atoms, float], tuple[Any, Any]]

#: Two atoms closer than this are taken to coincide (Å): forces have no direction there.
COINCIDENCE = 1e-4


def check_atoms(atoms: Atoms) -> None:
    """Refuse a structure no potential can evaluate.

    Parameters
    ----------
    atoms
        Positions in Å, cell in Å.

    Raises
    ------
    InputError
        If there are no atoms, a position or cell entry is not finite, or a cell is needed
        (``pbc``) and its vectors span no volume; the message names the atom or the argument.
    """
    if len(atoms) == 0:
        raise InputError("the structure has no atoms")
    positions = atoms.get_positions()
    if not np.isfinite(positions).all():
        index = int(np.argmin(np.isfinite(positions).all(axis=1)))
        symbol = atoms.get_chemical_symbols()[index]
        raise InputError(f"position of atom {index} ({symbol}) is not finite: {positions[index].tolist()}")
    cell = np.asarray(atoms.cell[:])
    if not np.isfinite(cell).all():
        raise InputError(f"the cell is not finite: {cell.tolist()}")
    if not spans_volume(cell[np.asarray(atoms.pbc)]):
        raise InputError(
            f"pbc={np.asarray(atoms.pbc).tolist()} needs a cell that spans a volume, but the cell is {cell.tolist()}"
        )


def spans_volume(vectors: FloatArray) -> bool:
    """Whether (m, 3) finite cell vectors are linearly independent, whatever their lengths."""
    lengths = np.linalg.norm(vectors, axis=1)
    if not len(vectors) or lengths.min() < 1e-8:
        return not len(vectors)
    return bool(np.linalg.svd(vectors / lengths[:, None], compute_uv=False).min() >= 1e-6)


def neighbor_list(atoms: Atoms, cutoff: float) -> tuple[IntArray, FloatArray]:
    """All pairs of atoms closer than ``cutoff``, periodic images included, in both directions.

    Parameters
    ----------
    atoms
        Structure; positions and cell in Å. Atoms outside the cell are fine.
    cutoff
        Radius in Å.

    Returns
    -------
    edge_index : (2, e) int64
        Indices i (row 0) and j (row 1) of each pair.
    edge_shift : (e, 3) float64
        Integer cell shifts S: the pair's vector is ``x[j] - x[i] + S @ cell``.

    Raises
    ------
    InputError
        If two atoms coincide, or :func:`check_atoms` refuses the structure.
    """
    check_atoms(atoms)
    calculator = NeighborList(cutoff=cutoff, full_list=True)
    i, j, shift, distance = calculator.compute(
        points=atoms.get_positions(), box=np.asarray(atoms.cell[:]), periodic=np.asarray(atoms.pbc), quantities="ijSd"
    )
    if len(distance) and distance.min() < COINCIDENCE:
        edge = int(distance.argmin())
        a, b = int(i[edge]), int(j[edge])
        names = [f"{k} ({chemical_symbols[atoms.numbers[k]]})" for k in (a, b)]
        raise InputError(f"atoms {names[0]} and {names[1]} coincide: {distance[edge]:.1e} Å apart")
    edge_index = np.stack([i, j]).astype(np.int64)
    return edge_index, np.ascontiguousarray(shift, dtype=np.float64)


class SkinNeighborList:
    """Neighbour list of one moving structure, rebuilt only when an atom may have crossed the skin.

    That is when an atom has moved half of it in a cell that stays, and correspondingly earlier in a cell
    that shrinks.

    The list holds pairs up to ``cutoff + skin``; whoever uses it must drop the pairs beyond the
    cutoff at every evaluation (:meth:`AtomGraph.edges_within` does). A skin saves rebuilds in MD and
    relaxations; it costs time where every structure is new, so ``skin=0`` is right there.

    Parameters
    ----------
    cutoff
        Radius of the potential in Å.
    skin
        Extra radius in Å.
    find
        Finds the pairs of a structure within a radius, as :func:`neighbor_list` does.
    """

    def __init__(self, cutoff: float, skin: float = 0.0, find: FindPairs | None = None) -> None:
        if skin < 0:
            raise InputError(f"skin must not be negative, got {skin}")
        self._find = find or neighbor_list
        self.cutoff = cutoff
        self.skin = skin
        self.rebuilds = 0
        self._atoms: Atoms | None = None
        self._edges: tuple[Any, Any] | None = None

    def update(self, atoms: Atoms) -> tuple[Any, Any]:
        """Edges for ``atoms`` as ``find`` gives them, up to ``cutoff + skin``: the same objects while they hold."""
        if self._edges is None or not self._still_valid(atoms):
            self._edges = self._find(atoms, self.cutoff + self.skin)
            self._atoms = Atoms(
                numbers=atoms.numbers, positions=atoms.get_positions(), cell=atoms.cell[:], pbc=atoms.pbc
            )
            self.rebuilds += 1
        return self._edges

    def _still_valid(self, atoms: Atoms) -> bool:
        old = self._atoms
        if self.skin == 0 or old is None or len(old) != len(atoms) or (old.pbc != atoms.pbc).any():
            return False
        positions, stretch = atoms.get_positions(), 1.0
        if not np.array_equal(old.cell[:], atoms.cell[:]):
            if not spans_volume(old.cell[:]) or not np.isfinite(atoms.cell[:]).all():
                return False
            # x = (x_old + u) D with the deformation D of the cell: a pair shortens at most to
            # s (d - 2 |u|), s the smallest singular value of D.
            deformation = np.linalg.solve(old.cell[:], atoms.cell[:])
            stretch = float(np.linalg.svd(deformation, compute_uv=False).min())
            if stretch < _SMALLEST_STRETCH:
                return False
            positions = positions @ np.linalg.inv(deformation)
        moved = np.sqrt(((positions - old.positions) ** 2).sum(axis=1).max())
        if stretch == 1.0:
            return bool(moved <= 0.5 * self.skin)
        # The comparison is False for NaN, so a broken structure reaches check_atoms.
        return bool(stretch * (self.cutoff + self.skin - 2 * moved) >= self.cutoff)


#: A cell that shrinks by more than this in any direction is a new one.
_SMALLEST_STRETCH = 0.5
