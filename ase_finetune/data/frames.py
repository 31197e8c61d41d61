"""Labelled structures: one frame, and immutable sets of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from ase import Atoms

from ase_finetune.data.frame import Frame, Summary, hash_frame, summarize
from ase_finetune.data.labels import LABELS, KeyCensus, parse_energy, parse_label, strip_labels
from ase_finetune.data.lazy_graphs import CACHE_BYTES, LazyGraphs
from ase_finetune.data.scanning import scan
from ase_finetune.data.sources import Source, open_structures
from ase_finetune.data.streaming import StreamedFrames
from ase_finetune.errors import DataError, InputError
from ase_finetune.graphs import AtomGraph
from ase_finetune.graphs.neighbors import FloatArray

__all__ = ["Frame", "FrameSet", "read_frames"]


class FrameSet(Sequence[Frame]):
    """An immutable, named sequence of frames, in memory or (a few numbers of each) streamed from a database.

    Parameters
    ----------
    name
        What messages and reports call it, such as "train".
    frames
        Its frames.
    label_sources
        For each label found, the keys it came from.
    notes
        Remarks for the report.
    """

    def __init__(
        self,
        name: str,
        frames: Iterable[Frame],
        label_sources: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.frames: Sequence[Frame] = frames if isinstance(frames, StreamedFrames) else tuple(frames)
        self.label_sources = dict(label_sources or {})
        self.notes = tuple(notes)

    @classmethod
    def from_atoms(
        cls,
        structures: Iterable[Atoms],
        *,
        name: str = "frames",
        energies: Sequence[float | None] | None = None,
        forces: Sequence[FloatArray | None] | None = None,
        stresses: Sequence[FloatArray | None] | None = None,
    ) -> FrameSet:
        """Frames called ``name`` with the labels given, for example predictions of a model.

        Labels given (``energies`` in eV, ``forces`` (n, 3) in eV/Å, ``stresses`` (6,) in eV/Å³) replace all labels
        on the ``structures``; with none given, those on the structures are read, if there are any.

        Raises
        ------
        DataError
            As :func:`read_frames`, except that labels may be missing.
        InputError
            If there are not as many labels as structures.
        """
        given = {"energy": energies, "forces": forces, "stress": stresses}
        if all(values is None for values in given.values()):
            return read_frames(list(structures), name=name, require_labels=False)
        frames = read_frames([strip_labels(atoms, {}) for atoms in structures], name=name, require_labels=False)
        columns = {label: _column(label, values, frames) for label, values in given.items()}
        labelled = [
            dataclasses.replace(frame, **{label: column[i] for label, column in columns.items()})
            for i, frame in enumerate(frames)
        ]
        sources = {label: "given" for label, values in given.items() if values is not None}
        return cls(name, labelled, sources)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> FrameSet: ...
    def __getitem__(self, index: int | slice) -> Frame | FrameSet:
        return self._with(self.frames[index]) if isinstance(index, slice) else self.frames[index]

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    def __repr__(self) -> str:
        return f"FrameSet({self.name!r}, {len(self)} frames, labels {self.num_labels})"

    @property
    def is_streamed(self) -> bool:
        """Whether frames are read from a database when they are asked for."""
        return isinstance(self.frames, StreamedFrames)

    @property
    def summaries(self) -> Iterable[Summary]:
        """What is known of each frame without reading it from a database."""
        return self.frames.summaries if isinstance(self.frames, StreamedFrames) else map(summarize, self.frames)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(sorted({z for summary in set(self.summaries) for z in summary.elements}))

    @property
    def num_labels(self) -> dict[str, int]:
        """How many frames carry each of energy, forces and stress."""
        carried = [summary.labels for summary in self.summaries]
        return {label: sum(labels[column] for labels in carried) for column, label in enumerate(LABELS)}

    @property
    def sizes(self) -> list[int]:
        """Number of atoms of each frame."""
        return [summary.size for summary in self.summaries]

    @property
    def groups(self) -> list[str]:
        """The trajectory of each frame."""
        if isinstance(self.frames, StreamedFrames):
            return self.frames.groups
        return [frame.group for frame in self.frames]

    @property
    def structures(self) -> list[Atoms]:
        """All structures, without labels, in memory."""
        return [frame.atoms for frame in self.frames]

    def select(self, indices: Iterable[int], *, name: str | None = None) -> FrameSet:
        """The frames at these ``indices`` of the set, in this order; ``name`` is that of the new set."""
        positions = [int(index) for index in indices]
        if isinstance(self.frames, StreamedFrames):
            chosen = self._with(self.frames.take(positions))
        else:
            chosen = self._with(map(self.frames.__getitem__, positions))
        return chosen if name is None else chosen.renamed(name)

    def renamed(self, name: str) -> FrameSet:
        """The same frames under another ``name``."""
        return FrameSet(name, self.frames, self.label_sources, self.notes)

    def with_energies(self, energies: Sequence[float | None]) -> FrameSet:
        """The same frames with other ``energies`` (eV); ``None`` for a missing one.

        Raises
        ------
        InputError
            If there are not as many energies as frames.
        DataError
            If one is not finite.
        """
        column = _energies(energies, self)
        if isinstance(self.frames, StreamedFrames):
            return self._with(self.frames.with_energies(column))
        return self._with(dataclasses.replace(frame, energy=e) for frame, e in zip(self.frames, column, strict=True))

    def describe(self, position: int) -> str:
        """How messages name the frame at ``position``: its index in its source, the set and the source."""
        frame = self.frames[position]
        return f"frame {frame.index} of {self.name} ({frame.source})"

    def digest(self) -> str:
        """SHA-256 (hex) of structures and labels in their order, whatever the files are called."""
        sha = hashlib.sha256()
        for frame in self.frames:
            hash_frame(sha, frame)
        return sha.hexdigest()

    def graphs(self, cutoff: float, *, cache_bytes: int = CACHE_BYTES) -> Sequence[AtomGraph]:
        """One labelled graph per frame; missing labels are masked.

        A list, or of a streamed set :class:`LazyGraphs`, which builds them when they are asked for.

        Parameters
        ----------
        cutoff
            Radius of the potential in Å.
        cache_bytes
            How much memory the graphs of a streamed set may keep, in each process that builds some.

        Raises
        ------
        DataError
            If a structure cannot be evaluated; the message names the frame and the atom.
        """
        if isinstance(self.frames, StreamedFrames):
            return LazyGraphs(self, cutoff, cache_bytes)
        return [self.graph(position, cutoff) for position in range(len(self))]

    def graph(self, position: int, cutoff: float) -> AtomGraph:
        """The labelled graph of the frame at ``position``, with ``cutoff`` in Å.

        Raises
        ------
        DataError
            If the structure cannot be evaluated; the message names the frame.
        """
        frame = self.frames[position]
        try:
            graph = AtomGraph.from_atoms(frame.atoms, cutoff)
        except InputError as error:
            raise DataError(f"frame {frame.index} of {self.name} ({frame.source}): {error}") from error
        return graph.with_labels(energy=frame.energy, forces=frame.forces, stress=frame.stress)

    def _with(self, frames: Iterable[Frame]) -> FrameSet:
        return FrameSet(self.name, frames, self.label_sources, self.notes)


def read_frames(
    source: Source | FrameSet,
    *,
    name: str = "train",
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    require_labels: bool = True,
    stream: bool | None = None,
) -> FrameSet:
    """Read structures and their labels.

    Parameters
    ----------
    source
        A path of anything that ``ase.io.read`` reads (extxyz, db, traj, OUTCAR, vasprun.xml, ...;
        ``file.xyz@0:10`` for a part of it), several paths, structures, or a :class:`FrameSet`.
    name
        What messages and reports call the set.
    energy_key, forces_key, stress_key
        Keys of ``info``, ``arrays`` or ``calc.results`` that hold the labels (eV, eV/Å, eV/Å³ with
        ASE's sign; a key with "virial" in its name: virials in eV). By default they are searched as
        described in :mod:`ase_finetune.data.labels`.
    require_labels
        Refuse a set without any label.
    stream
        Leave the structures of ASE databases (``.db``, ``.aselmdb``) on disk and read them when they are
        used, for sets larger than memory. They are read once here, to check them. By default so are
        databases of more than :data:`~ase_finetune.data.sources.STREAM_FROM` structures.

    Returns
    -------
    The frames, with their labels and where these were found.

    Raises
    ------
    DataError
        If there is nothing to read, a structure or a label cannot be used (the message names the
        frame), a key occurs nowhere, or there are no labels (the message lists the keys seen).
    InputError
        If the source is of the wrong kind, keys are given for a :class:`FrameSet`, or something is to be
        streamed that cannot be.
    """
    keys = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
    if isinstance(source, FrameSet):
        if any(keys.values()):
            raise InputError(f"{name}: label keys have no effect on a FrameSet, whose labels are already read")
        if stream is not None and stream != source.is_streamed:
            raise InputError(f"{name}: stream={stream} has no effect on a FrameSet, which is read already")
        frames = source.renamed(name)
    else:
        found = scan(open_structures(source, name, stream), keys, name)
        frames = FrameSet(name, found.frames, found.label_sources, found.notes)
    if require_labels and not any(frames.num_labels.values()):
        seen = KeyCensus(f.atoms for f in source).describe() if isinstance(source, FrameSet) else found.keys_seen
        raise DataError(
            f"{name}: none of {len(frames)} frames has an energy, forces or stress label; "
            f"the keys seen are {seen} (energy_key=... and forces_key=... name others)"
        )
    return frames


def _energies(values: Sequence[float | None], frames: FrameSet) -> list[float | None]:
    if len(values) != len(frames):
        raise InputError(f"{len(values)} energy labels for the {len(frames)} frames of {frames.name}")
    column = []
    for position, value in enumerate(values):
        try:
            column.append(None if value is None else parse_energy(value, "energy label"))
        except DataError as error:
            raise DataError(f"{frames.describe(position)}: {error}") from error
    return column


def _column(label: str, values: Sequence[Any] | None, frames: FrameSet) -> list[Any]:
    if values is None:
        return [None] * len(frames)
    if len(values) != len(frames):
        raise InputError(f"{len(values)} {label} labels for the {len(frames)} frames of {frames.name}")
    return [
        None if value is None else parse_label(label, value, frame.atoms, f"{frames.describe(i)}: {label} label")
        for i, (frame, value) in enumerate(zip(frames, values, strict=True))
    ]
