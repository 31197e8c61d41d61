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
#: (those of a single atom aside) carry and that takes more than one value is used. ``config_type`` is
#: not among them: it names kinds of structures ("bulk", "IsolatedAtom"), not trajectories.
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
    the same atoms in the same order and nearly the same cell count as one trajectory. Isolated atoms, which
    often lack the key that the others carry, do not take it from them.

    Parameters
    ----------
    structures
        In the order of the source.
    sources
        The file that each is from.
    """
    groups = TrajectoryGroups()
    for atoms, source in zip(structures, sources, strict=True):
        groups.add(atoms, source)
    return groups.names()


class TrajectoryGroups:
    """What :func:`trajectory_groups` does, one structure at a time: it keeps names, and the last structure."""

    def __init__(self) -> None:
        # A key is out as soon as a structure lacks it.
        self._values: dict[str, list[str | None]] = {key: [] for key in GROUP_KEYS}
        self._consecutive: list[str] = []
        self._counts: dict[str, int] = {}
        self._last: tuple[Atoms, str] | None = None
        # One string object per name: there are as many entries as frames.
        self._names: dict[str, str] = {}

    def add(self, atoms: Atoms, source: str) -> None:
        """The next structure and the file it is from."""
        for key in list(self._values):
            value = _scalar(atoms.info.get(key))
            if value is None and len(atoms) > 1:
                del self._values[key]
            else:
                self._values[key].append(None if value is None else self._one(f"{key}={value}"))
        if self._last is None or source != self._last[1] or not _continues(self._last[0], atoms):
            self._counts[source] = self._counts.get(source, 0) + 1
        self._consecutive.append(self._one(f"{source}, trajectory {self._counts[source]}"))
        self._last = atoms, source

    def names(self) -> list[str]:
        """The trajectory of each structure so far."""
        for values in self._values.values():
            if len(set(values) - {None}) > 1:
                return [value or other for value, other in zip(values, self._consecutive, strict=True)]
        return self._consecutive

    def _one(self, name: str) -> str:
        return self._names.setdefault(name, name)


def _scalar(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int | float | np.integer | np.floating) else None


def _continues(before: Atoms, after: Atoms) -> bool:
    if not np.array_equal(before.numbers, after.numbers) or (before.pbc != after.pbc).any():
        return False
    old, new = np.asarray(before.cell[:]), np.asarray(after.cell[:])
    longest = np.linalg.norm(old, axis=1).max()
    return bool(np.abs(new - old).max() <= CELL_TOLERANCE * longest + 1e-8)
