"""Do an initial and a relaxed structure belong together, atom by atom?

A pair whose atoms are in different orders trains a potential to exchange them. Different species give it
away; equal ones do not, and only their distances speak.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.geometry import complete_cell, find_mic, minkowski_reduce
from scipy.optimize import linear_sum_assignment

from ase_finetune.errors import DataError, InputError
from ase_finetune.graphs import check_atoms
from ase_finetune.graphs.neighbors import FloatArray, IntArray

#: Positions and cells (Å) that differ by no more than this are the same.
SAME = 1e-6

#: Atoms look swapped where relabelling brings each within ``CLOSE`` of its site, and some were further than
#: ``FAR`` from it before (Å). Sites of equal atoms are 2 Å and more apart; relaxations that leave every
#: atom within 0.3 Å of a site do not exchange two of them.
CLOSE, FAR = 0.3, 1.0

# A note is worth it where relabelling takes away more than this part of the squared distances of the relabelled.
_NOTABLE = 0.5


def check_pair(initial: Atoms, relaxed: Atoms, where: str) -> str | None:
    """Refuse a pair whose structures do not have the same atoms in the same order, or are the same.

    Parameters
    ----------
    initial, relaxed
        The two ends of a relaxation.
    where
        How messages name the pair.

    Returns
    -------
    A remark if equal atoms may be swapped, but the structures are too different to be sure.

    Raises
    ------
    DataError
        If a structure cannot be evaluated, or their atoms, their order or periodic directions differ,
        or nothing has moved.
    """
    for end, atoms in (("initial", initial), ("relaxed", relaxed)):
        try:
            check_atoms(atoms)
        except InputError as error:
            raise DataError(f"{where}, {end} structure: {error}") from error
    _check_species(initial, relaxed, where)
    if (initial.pbc != relaxed.pbc).any():
        ends = f"{initial.pbc.tolist()} in the initial structure and {relaxed.pbc.tolist()} in the relaxed one"
        raise DataError(f"{where}: pbc is {ends}")
    if np.abs(initial.positions - relaxed.positions).max() <= SAME and same_cell(initial, relaxed):
        raise DataError(f"{where}: the relaxed structure is the initial one, to {SAME:g} Å; leave such pairs out")
    return _check_swaps(initial, relaxed, where)


def same_cell(initial: Atoms, relaxed: Atoms) -> bool:
    """Whether the relaxation kept the cell, to 1e-6 Å."""
    return bool(np.abs(initial.cell[:] - relaxed.cell[:]).max() <= SAME)


def moved(initial: Atoms, relaxed: Atoms) -> FloatArray:
    """(n, 3) displacements from relaxed to initial in Å: nearest images in the relaxed cell, without their mean."""
    shortest: FloatArray = min((vectors for vectors, _ in _candidates(initial, relaxed)), key=_sum_squares)
    return shortest


def best_assignment(initial: Atoms, relaxed: Atoms) -> tuple[IntArray, FloatArray]:
    """Relabelling of equal atoms with the least sum of squared displacements.

    Returns
    -------
    assignment : (n,)
        For each initial atom the relaxed atom nearest to it in this sense.
    displacements : (n, 3)
        Å, after relabelling; see :func:`moved`.
    """
    found = []
    for vectors, drift in _candidates(initial, relaxed):
        labels = _assign(initial, relaxed, drift)
        if (labels != np.arange(len(labels))).any():
            vectors = min((v for v, _ in _candidates(initial, relaxed[labels])), key=_sum_squares)
        found.append((labels, vectors))
    return min(found, key=lambda pair: _sum_squares(pair[1]))


def _check_species(initial: Atoms, relaxed: Atoms, where: str) -> None:
    if len(initial) != len(relaxed):
        raise DataError(f"{where}: {len(initial)} atoms in the initial structure and {len(relaxed)} in the relaxed one")
    differ = initial.numbers != relaxed.numbers
    if not differ.any():
        return
    index = int(np.argmax(differ))
    symbols = initial.symbols[index], relaxed.symbols[index]
    culprit = f"atom {index} is {symbols[0]} in the initial structure and {symbols[1]} in the relaxed one"
    if (np.sort(initial.numbers) == np.sort(relaxed.numbers)).all():
        raise DataError(f"{where}: atoms are permuted: {culprit}; both hold the same elements, so reorder one of them")
    raise DataError(f"{where}: {culprit}")


def _check_swaps(initial: Atoms, relaxed: Atoms, where: str) -> str | None:
    before = np.linalg.norm(moved(initial, relaxed), axis=1)
    if before.max() <= FAR:
        return None
    assignment, vectors = best_assignment(initial, relaxed)
    relabelled = assignment != np.arange(len(assignment))
    if not relabelled.any():
        return None
    after = np.linalg.norm(vectors, axis=1)
    culprits = _name_cycles(assignment, initial.get_chemical_symbols())
    numbers = f"relabelled, they are within {after[relabelled].max():.2f} Å of their sites instead of up to"
    if after.max() <= CLOSE and before[relabelled].max() > FAR:
        raise DataError(f"{where}: {culprits} look swapped: {numbers} {before[relabelled].max():.2f} Å; reorder them")
    if (after[relabelled] ** 2).sum() < (1 - _NOTABLE) * (before[relabelled] ** 2).sum():
        return f"{where}: {culprits} may be swapped: {numbers} {before[relabelled].max():.2f} Å"
    return None


def _candidates(initial: Atoms, relaxed: Atoms) -> list[tuple[FloatArray, FloatArray]]:
    """Displacements (n, 3) in Å without their mean, for two guesses (3,) of the fractional drift.

    The circular mean is right where all has moved together, no drift where many atoms are swapped. The
    guesses are not refined: the mean over swapped atoms depends on which images happen to be nearest.
    """
    before, after, cell = _fractional(initial, relaxed)
    apart = before - after
    angles = np.exp(2j * np.pi * apart).mean(axis=0)
    mean = np.where(relaxed.pbc, np.angle(angles) / (2 * np.pi), apart.mean(axis=0))
    found = []
    for drift in (mean, np.where(relaxed.pbc, 0.0, mean)):
        vectors = find_mic((apart - drift) @ cell, cell, relaxed.pbc)[0]
        found.append((vectors - vectors.mean(axis=0), drift))
    return found


def _fractional(initial: Atoms, relaxed: Atoms) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Fractional coordinates of both, and the relaxed cell with unit vectors where it is not periodic."""
    pbc = np.asarray(relaxed.pbc)[:, None]
    cell = np.asarray(complete_cell(np.where(pbc, relaxed.cell[:], 0.0)))
    start = np.where(pbc, initial.cell[:], cell)
    return initial.positions @ np.linalg.inv(start), relaxed.positions @ np.linalg.inv(cell), cell


def _assign(initial: Atoms, relaxed: Atoms, drift: FloatArray) -> IntArray:
    before, after, cell = _fractional(initial, relaxed)
    # In a reduced cell, rounding finds the nearest image of everything that is near: enough to tell sites apart.
    reduced, basis = minkowski_reduce(cell, relaxed.pbc)
    to_reduced = np.linalg.inv(basis)
    before, after = (before - drift) @ to_reduced, after @ to_reduced
    assignment = np.arange(len(initial))
    for number in np.unique(initial.numbers):
        same = np.flatnonzero(initial.numbers == number)
        apart = before[same, None] - after[None, same]
        apart -= np.where(relaxed.pbc, np.round(apart), 0.0)
        rows, columns = linear_sum_assignment(((apart @ np.asarray(reduced)) ** 2).sum(axis=2))
        assignment[same[rows]] = same[columns]
    return assignment


def _name_cycles(assignment: Sequence[int] | IntArray, symbols: Sequence[str]) -> str:
    """The relabelled atoms, such as "atoms 1 and 4 (Li), atoms 2, 5 and 6 (O)"."""
    seen: set[int] = set()
    names = []
    for first in range(len(assignment)):
        cycle = []
        atom = first
        while atom not in seen:
            seen.add(atom)
            cycle.append(atom)
            atom = int(assignment[atom])
        if len(cycle) > 1:
            listed = ", ".join(map(str, cycle[:-1]))
            names.append(f"atoms {listed} and {cycle[-1]} ({symbols[first]})")
    more = f" and {len(names) - 3} more groups" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _sum_squares(vectors: FloatArray) -> float:
    return float((vectors**2).sum())
