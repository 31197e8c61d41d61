"""From whatever holds structures (files, lists) to ASE structures that know where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from ase import Atoms
from ase.io import read

from ase_finetune.data.databases import DatabaseOrigins, Origin, is_database
from ase_finetune.data.xyz_counts import check_counts
from ase_finetune.errors import DataError, InputError

#: A file that ASE reads, several of them, or structures.
Source: TypeAlias = "str | Path | Atoms | Iterable[str | Path] | Iterable[Atoms]"


#: Databases with more structures than this are streamed where nothing else is said.
STREAM_FROM = 5_000


def load_structures(source: Source, name: str) -> list[Origin]:
    """All structures of a source.

    Parameters
    ----------
    source
        A path of anything that ``ase.io.read`` reads (``file.xyz@0:10`` for a part of it), several
        paths, one structure or several.
    name
        What messages call the set.

    Raises
    ------
    DataError
        If a file is missing, cannot be read or holds nothing, or the list is empty.
    InputError
        If the source is something else.
    """
    return [origin for part in _parts(source, name) for origin in part]


def open_structures(source: Source, name: str, stream: bool | None) -> Sequence[Origin]:
    """As :func:`load_structures`, but a list only where the structures are not streamed.

    Parameters
    ----------
    stream
        Leave the structures of databases on disk and read each when it is asked for; ``None``: if
        there are more than :data:`STREAM_FROM` of them.

    Raises
    ------
    InputError
        Also if ``stream`` is true and nothing in the source is a database.
    """
    parts = _parts(source, name)
    rows = [len(part) for part in parts if isinstance(part, DatabaseOrigins)]
    if stream and not rows:
        raise InputError(
            f"{name}: stream=True needs an ASE database, of which single structures can be read: a .db file, or an "
            ".aselmdb file with the package ase-db-backends. 'ase convert in.extxyz out.db' makes one of a file"
        )
    if stream or (stream is None and sum(rows) > STREAM_FROM):
        return parts[0] if len(parts) == 1 else _Joined(parts)
    return [origin for part in parts for origin in part]


class _Joined(Sequence[Origin]):
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Origin]]) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> Origin: ...
    @overload
    def __getitem__(self, index: slice) -> list[Origin]: ...
    def __getitem__(self, index: int | slice) -> Origin | list[Origin]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        number = int(np.searchsorted(self._ends, position, side="right"))
        return self._parts[number][position - int(self._ends[number])]


def _parts(source: Source, name: str) -> list[Sequence[Origin]]:
    """The structures of each file, or of the list."""
    if isinstance(source, Atoms):
        source = [source]
    if isinstance(source, str | Path):
        return [_open_file(source, name)]
    try:
        items: list[Any] = list(source)
    except TypeError as error:
        raise InputError(_wrong_source(name, source)) from error
    if not items:
        raise DataError(f"{name}: the list holds no structures")
    if all(isinstance(item, Atoms) for item in items):
        return [[Origin(atoms, "list", index) for index, atoms in enumerate(items)]]
    for item in items:
        if not isinstance(item, str | Path):
            raise InputError(_wrong_source(name, item))
    return [_open_file(item, name) for item in items]


def _open_file(path: str | Path, name: str) -> Sequence[Origin]:
    file, selection = _split_selection(path)
    if not file.exists():
        raise DataError(f"{name}: there is no file '{file}'")
    if not (file.is_file() or file.is_dir()):  # ASE reads some folders; a pipe or a device might never end
        raise DataError(f"{name}: '{file}' is neither a file nor a folder")
    source = Path(path).name
    if is_database(file):
        origins: Sequence[Origin] = DatabaseOrigins(file, selection, source, name)
    else:
        origins = [Origin(atoms, source, index) for index, atoms in enumerate(_read(file, selection, path, name))]
    if not origins:
        raise DataError(f"{name}: '{path}' holds no structures")
    return origins


def _read(file: Path, selection: str, path: str | Path, name: str) -> list[Atoms]:
    check_counts(file, selection, f"{name}: '{path}'")
    try:
        # Explicitly: given an index, ASE ignores the one behind the @ sign.
        frames = read(file, index=selection, do_not_split_by_at_sign=True)
    except Exception as error:
        # The readers raise whatever their format made them stumble over.
        raise DataError(f"{name}: ASE cannot read '{path}' ({type(error).__name__}: {error})") from error
    return [frames] if isinstance(frames, Atoms) else list(frames)


def _split_selection(path: str | Path) -> tuple[Path, str]:
    file = Path(path)
    if "@" not in file.name or file.exists():
        return file, ":"
    stem, selection = file.name.rsplit("@", 1)
    return file.with_name(stem), selection or ":"


def _wrong_source(name: str, culprit: Any) -> str:
    return (
        f"{name}: expected a path, a list of paths, a list of ase.Atoms or a FrameSet, "
        f"got {culprit!r} of type {type(culprit).__name__}"
    )
