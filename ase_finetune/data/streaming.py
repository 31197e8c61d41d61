"""Frames that stay in their database and are read when they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from ase_finetune.data.databases import Origin
from ase_finetune.data.frame import Frame, Summary, read_frame
from ase_finetune.data.labels import LABELS
from ase_finetune.graphs.neighbors import FloatArray, IntArray


@dataclass(frozen=True)
class _Table:
    """All frames of a source; views of it share what was found out about them."""

    origins: Sequence[Origin]
    keys: Mapping[str, str | None]
    name: str
    groups: Sequence[str]
    #: Numbers of edges by cutoff, -1 where not known.
    edges: dict[float, IntArray] = field(default_factory=dict)


class StreamedFrames(Sequence[Frame]):
    """Frames read on access, or a view of some of them. Memory holds a few numbers per frame.

    Copies of it may be used in other processes.

    Parameters
    ----------
    origins
        The structures, read on access.
    keys
        As of :func:`~ase_finetune.data.labels.find_labels`.
    name
        What messages call the set.
    groups
        The trajectory of each frame.
    summaries
        The summary of each frame.
    """

    def __init__(
        self,
        origins: Sequence[Origin],
        keys: Mapping[str, str | None],
        name: str,
        groups: Sequence[str],
        summaries: Sequence[Summary],
    ) -> None:
        self._table = _Table(origins, keys, name, groups)
        self._rows: IntArray = np.arange(len(origins))
        self._energies: FloatArray | None = None
        #: The summary of each frame.
        self.summaries = list(summaries)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> StreamedFrames: ...
    def __getitem__(self, index: int | slice) -> Frame | StreamedFrames:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        row = int(self._rows[index])
        frame, _ = read_frame(self._table.origins[row], self._table.keys, self._table.name)
        energy = frame.energy if self._energies is None else _number(self._energies[index])
        return dataclasses.replace(frame, energy=energy, group=self._table.groups[row])

    def __iter__(self) -> Iterator[Frame]:
        return (self[position] for position in range(len(self)))

    @property
    def groups(self) -> list[str]:
        """The trajectory of each frame."""
        return [self._table.groups[row] for row in self._rows]

    def take(self, indices: Iterable[int]) -> StreamedFrames:
        """A view of the frames at these positions, in this order."""
        positions = np.fromiter(indices, dtype=np.int64)
        energies = None if self._energies is None else self._energies[positions]
        return self._view(self._rows[positions], energies, [self.summaries[position] for position in positions])

    def with_energies(self, energies: Iterable[float | None]) -> StreamedFrames:
        """The same frames with other energies (eV)."""
        column = np.array([np.nan if energy is None else energy for energy in energies])
        known: dict[Summary, Summary] = {}
        where = LABELS.index("energy")
        summaries = []
        for summary, missing in zip(self.summaries, np.isnan(column).tolist(), strict=True):
            labels = (*summary.labels[:where], not missing, *summary.labels[where + 1 :])
            changed = summary._replace(labels=labels)
            summaries.append(known.setdefault(changed, changed))
        return self._view(self._rows, column, summaries)

    def edges(self, cutoff: float) -> IntArray:
        """(len,) numbers of edges as far as they are known, -1 where they are not."""
        return self._all_edges(cutoff)[self._rows]

    def remember_edges(self, position: int, cutoff: float, edges: int) -> None:
        """Note the number of edges of a frame, for all views of it."""
        self._all_edges(cutoff)[self._rows[position]] = edges

    def _all_edges(self, cutoff: float) -> IntArray:
        return self._table.edges.setdefault(cutoff, np.full(len(self._table.origins), -1))

    def _view(self, rows: IntArray, energies: FloatArray | None, summaries: list[Summary]) -> StreamedFrames:
        view = object.__new__(StreamedFrames)
        view._table, view._rows, view._energies, view.summaries = self._table, rows, energies, summaries
        return view


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
