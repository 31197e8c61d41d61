"""Which frames belong to one trajectory.

Neighbouring frames of a trajectory are nearly the same structure: with some of them in training and
others in validation, the validation error says nothing. Every frame therefore carries the identity of
its trajectory, decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms

#: Keys of ``info`` that identify a trajectory, the most specific first. The first one that all frames
#: carry and that takes more than one value is used. ``config_type`` is not among them: it names kinds
#: of structures ("bulk", "IsolatedAtom"), not trajectories.
GROUP_KEYS = (
    "mptrj_traj_id",
    "traj_id",
    "trajectory",
    "trajectory_id",
    "run",
    "run_id",
    "mp_id",
    "material_id",
    "structure_id",
    "group",
    "group_id",
    "source",
)

#: Cells of consecutive frames may differ by this much of the longest vector within a trajectory.
CELL_TOLERANCE = 0.05


def trajectory_groups(structures: Sequence[Atoms], sources: Sequence[str]) -> list[str]:
    """The trajectory of each structure, as a name that is equal for frames of the same one.

    By the first useful key of :data:`GROUP_KEYS`; without one, consecutive frames of a source with
    the same atoms in the same order and nearly the same cell count as one trajectory.

    Parameters
    ----------
    structures
        In the order of the source.
    sources
        The file that each is from.
    """
    for key in GROUP_KEYS:
        values = [_scalar(atoms.info.get(key)) for atoms in structures]
        if None not in values and len(set(values)) > 1:
            return [f"{key}={value}" for value in values]
    return _consecutive(structures, sources)


def _scalar(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int | float | np.integer | np.floating) else None


def _consecutive(structures: Sequence[Atoms], sources: Sequence[str]) -> list[str]:
    groups: list[str] = []
    counts: dict[str, int] = {}
    for index, (atoms, source) in enumerate(zip(structures, sources, strict=True)):
        if index > 0 and source == sources[index - 1] and _continues(structures[index - 1], atoms):
            groups.append(groups[-1])
            continue
        counts[source] = counts.get(source, 0) + 1
        groups.append(f"{source}, trajectory {counts[source]}")
    return groups


def _continues(before: Atoms, after: Atoms) -> bool:
    if not np.array_equal(before.numbers, after.numbers) or (before.pbc != after.pbc).any():
        return False
    old, new = np.asarray(before.cell[:]), np.asarray(after.cell[:])
    longest = np.linalg.norm(old, axis=1).max()
    return bool(np.abs(new - old).max() <= CELL_TOLERANCE * longest + 1e-8)
