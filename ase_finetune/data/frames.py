"""Labelled structures: one frame, and immutable sets of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from ase import Atoms

from ase_finetune.data.groups import trajectory_groups
from ase_finetune.data.labels import (
    LABELS,
    check_keys_exist,
    describe_keys,
    find_labels,
    label_notes,
    parse_label,
    strip_labels,
)
from ase_finetune.data.sources import Origin, Source, load_structures
from ase_finetune.errors import DataError, InputError
from ase_finetune.graphs import AtomGraph, check_atoms
from ase_finetune.graphs.neighbors import FloatArray


@dataclass(frozen=True)
class Frame:
    """One structure of n atoms with its labels; ``None`` where a label is missing.

    Attributes
    ----------
    atoms
        The structure alone: no calculator, constraints or labels. Not to be modified.
    energy
        eV.
    forces : (n, 3)
        eV/Å.
    stress : (6,)
        eV/Å³, ASE's sign, order xx, yy, zz, yz, xz, xy.
    group
        The trajectory it belongs to.
    index
        Its position in its source.
    source
        File name, or "list".
    """

    atoms: Atoms
    energy: float | None = None
    forces: FloatArray | None = None
    stress: FloatArray | None = None
    group: str = ""
    index: int = 0
    source: str = "list"


class FrameSet(Sequence[Frame]):
    """An immutable, named sequence of frames.

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
        self.frames = tuple(frames)
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
        """Frames with the labels given (eV, eV/Å, eV/Å³), for example predictions of a model.

        Labels given replace all labels on the structures; with none given, those on the structures
        are read, if there are any.

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

    def __repr__(self) -> str:
        return f"FrameSet({self.name!r}, {len(self)} frames, labels {self.num_labels})"

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(sorted({int(z) for frame in self.frames for z in set(frame.atoms.numbers)}))

    @property
    def num_labels(self) -> dict[str, int]:
        """How many frames carry each of energy, forces and stress."""
        return {label: sum(getattr(frame, label) is not None for frame in self.frames) for label in LABELS}

    @property
    def structures(self) -> list[Atoms]:
        """The structures, without labels."""
        return [frame.atoms for frame in self.frames]

    def select(self, indices: Iterable[int], *, name: str | None = None) -> FrameSet:
        """The frames at these positions of the set, in this order."""
        chosen = self._with(self.frames[int(index)] for index in indices)
        return chosen if name is None else chosen.renamed(name)

    def renamed(self, name: str) -> FrameSet:
        """The same frames under another name."""
        return FrameSet(name, self.frames, self.label_sources, self.notes)

    def with_energies(self, energies: Sequence[float | None]) -> FrameSet:
        """The same frames with other energies (eV); ``None`` for a missing one.

        Raises
        ------
        InputError
            If there are not as many energies as frames.
        DataError
            If one is not finite.
        """
        column = _column("energy", energies, self)
        return self._with(dataclasses.replace(frame, energy=e) for frame, e in zip(self.frames, column, strict=True))

    def describe(self, position: int) -> str:
        """How messages name a frame: its index in its source, the set and the source."""
        frame = self.frames[position]
        return f"frame {frame.index} of {self.name} ({frame.source})"

    def digest(self) -> str:
        """SHA-256 (hex) of structures and labels in their order, whatever the files are called."""
        sha = hashlib.sha256()
        for frame in self.frames:
            sha.update(np.asarray(frame.atoms.numbers, dtype="<i8").tobytes())
            sha.update(np.asarray(frame.atoms.pbc, dtype=bool).tobytes())
            for value in (frame.atoms.positions, frame.atoms.cell[:], frame.energy, frame.forces, frame.stress):
                # Adding 0 turns -0.0, which files do not keep apart, into 0.0.
                sha.update(b"-" if value is None else (np.asarray(value, dtype="<f8") + 0.0).tobytes())
                sha.update(b"|")
        return sha.hexdigest()

    def graphs(self, cutoff: float, dtype: torch.dtype = torch.float32) -> list[AtomGraph]:
        """One labelled graph per frame; missing labels are masked.

        Parameters
        ----------
        cutoff
            Radius of the potential in Å.
        dtype
            Floating-point type of the graphs.

        Raises
        ------
        DataError
            If a structure cannot be evaluated; the message names the frame and the atom.
        """
        graphs = []
        for position, frame in enumerate(self.frames):
            try:
                graph = AtomGraph.from_atoms(frame.atoms, cutoff, dtype=dtype)
            except InputError as error:
                raise DataError(f"{self.describe(position)}: {error}") from error
            graphs.append(graph.with_labels(energy=frame.energy, forces=frame.forces, stress=frame.stress))
        return graphs

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
        told in :mod:`ase_finetune.data.labels`.
    require_labels
        Refuse a set without any label.

    Raises
    ------
    DataError
        If there is nothing to read, a structure or a label cannot be used (the message names the
        frame), a key occurs nowhere, or there are no labels (the message lists the keys seen).
    InputError
        If the source is of the wrong kind, or keys are given for a :class:`FrameSet`.
    """
    keys = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
    if isinstance(source, FrameSet):
        if any(keys.values()):
            raise InputError(f"{name}: label keys have no effect on a FrameSet, whose labels are already read")
        frames, structures = source.renamed(name), source.structures
    else:
        origins = load_structures(source, name)
        structures = [origin.atoms for origin in origins]
        check_keys_exist(structures, keys, name)
        frames = _build(origins, keys, name)
    if require_labels and not any(frames.num_labels.values()):
        raise DataError(
            f"{name}: none of {len(frames)} frames has an energy, forces or stress label; "
            f"the keys seen are {describe_keys(structures)} (energy_key=... and forces_key=... name others)"
        )
    return frames


def _build(origins: list[Origin], keys: Mapping[str, str | None], name: str) -> FrameSet:
    structures = [origin.atoms for origin in origins]
    groups = trajectory_groups(structures, [origin.source for origin in origins])
    frames = []
    counts: dict[str, Counter[str]] = {label: Counter() for label in LABELS}
    for origin, group in zip(origins, groups, strict=True):
        where = f"frame {origin.index} of {name} ({origin.source})"
        try:
            check_atoms(origin.atoms)
        except InputError as error:
            raise DataError(f"{where}: {error}") from error
        labels = find_labels(origin.atoms, keys, where)
        for label, key in labels.sources.items():
            counts[label][key] += 1
        values = {label: getattr(labels, label) for label in LABELS}
        atoms = strip_labels(origin.atoms, keys)
        frames.append(Frame(atoms, **values, group=group, index=origin.index, source=origin.source))
    sources = {label: ", ".join(found) for label, found in counts.items() if found}
    return FrameSet(name, frames, sources, label_notes(structures, counts))


def _column(label: str, values: Sequence[Any] | None, frames: FrameSet) -> list[Any]:
    if values is None:
        return [None] * len(frames)
    if len(values) != len(frames):
        raise InputError(f"{len(values)} {label} labels for the {len(frames)} frames of {frames.name}")
    return [
        None if value is None else parse_label(label, value, frame.atoms, f"{frames.describe(i)}: {label} label")
        for i, (frame, value) in enumerate(zip(frames, values, strict=True))
    ]
