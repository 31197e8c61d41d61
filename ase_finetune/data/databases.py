"""Rows of ASE databases, SQLite (``.db``) and LMDB (``.aselmdb``), read one at a time in any process."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.io.formats import string2index

from ase_finetune.errors import DataError
from ase_finetune.graphs.neighbors import IntArray

_SQLITE, _LMDB = ".db", ".aselmdb"
_SQLITE_MAGIC = b"SQLite format 3\x00"


@dataclass(frozen=True)
class Origin:
    """A structure, the file it is from (or "list") and its position there."""

    atoms: Atoms
    source: str
    index: int


def is_database(path: Path) -> bool:
    """Whether single structures can be read from a file without reading the others."""
    if path.suffix == _LMDB:
        return True
    if path.suffix != _SQLITE or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC


class DatabaseOrigins(Sequence[Origin]):
    """The rows of a database, each read when it is asked for; memory holds their ids.

    Every process and thread opens a connection of its own, so a pickled or forked copy may be used
    in workers. Key-value pairs of a row become ``info`` of its structure.

    Parameters
    ----------
    path
        An existing ``.db`` or ``.aselmdb`` file.
    selection
        What follows the @ sign of a source: a slice such as ``0:10``, or a query such as ``Na>3``.
    source
        What messages and frames call the file.
    name
        What messages call the set.

    Raises
    ------
    DataError
        If the file cannot be read.
    """

    def __init__(self, path: Path, selection: str, source: str, name: str) -> None:
        self.path = path.absolute()
        self._source, self._name = source, name
        self._connection: _Connection | None = None
        try:
            self._ids: IntArray = _select(self._connect().database, selection)
        except Exception as error:
            # The readers raise whatever the file made them stumble over.
            raise DataError(f"{name}: ASE cannot read '{source}' ({_reason(error)})") from error

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Origin: ...
    @overload
    def __getitem__(self, index: slice) -> list[Origin]: ...
    def __getitem__(self, index: int | slice) -> Origin | list[Origin]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        try:
            row = self._connect().database.get(int(self._ids[position]))
            atoms = row.toatoms()
            atoms.info.update(row.key_value_pairs)
        except Exception as error:
            raise DataError(
                f"frame {position} of {self._name} ({self._source}): ASE cannot read row {self._ids[position]} "
                f"({_reason(error)}); was the file changed meanwhile?"
            ) from error
        return Origin(atoms, self._source, position)

    def __iter__(self) -> Iterator[Origin]:
        return (self[position] for position in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_connection": None}

    def _connect(self) -> _Connection:
        connection = self._connection
        if connection is None or connection.owner != _owner(self.path):
            connection = self._connection = _open(self.path)
        return connection


class _Connection:
    """An open database, closed with the last of those who use it."""

    def __init__(self, path: Path) -> None:
        self.owner = _owner(path)
        if path.suffix == _LMDB:
            # Frames are read in random order: what the disk would read ahead is not what comes next.
            self.database = connect(str(path), readonly=True, readahead=False)
            return
        self.database = connect(str(path), serial=True)
        # Entered, it keeps one connection instead of opening one per row.
        connection = self.database.__enter__().connection
        weakref.finalize(self, _close, connection, path, self.owner)

    def leave_to_parent(self) -> None:
        """In a forked process: forget what the parent has open."""
        if hasattr(self.database, "_env_pid"):
            # LMDB takes the file for open until the inherited handle is closed, which does nothing else here.
            # Told that it is its own, the database closes it; left alone, it would first open another one.
            self.database._env_pid = os.getpid()
            self.database.close()


# LMDB refuses to open a file twice in one process, so those who read the same file share a connection.
_OPEN: weakref.WeakValueDictionary[tuple[Path, tuple[int, int]], _Connection] = weakref.WeakValueDictionary()


def _open(path: Path) -> _Connection:
    key = (path, _owner(path))
    found = _OPEN.get(key)
    if found is None:
        for inherited in [other for other in _OPEN.values() if other.owner[0] != os.getpid()]:
            inherited.leave_to_parent()
        found = _OPEN[key] = _Connection(path)
    return found


def _close(connection: Any, path: Path, owner: tuple[int, int]) -> None:
    if owner == _owner(path):
        connection.close()


def _owner(path: Path) -> tuple[int, int]:
    """Who may use a connection: no forked child, and with SQLite no other thread."""
    return os.getpid(), 0 if path.suffix == _LMDB else threading.get_ident()


def _select(database: Any, selection: str) -> IntArray:
    """Ids of the rows selected, ascending."""
    part = _as_slice(selection)
    if part is None:
        ids = [row.id for row in database.select(selection, columns=["id"], include_data=False)]
    elif hasattr(database, "ids"):
        ids = database.ids
    else:
        ids = [row.id for row in database.select(columns=["id"], include_data=False)]
    # Sorted: reading nothing but ids, SQLite may give them in the order of some index.
    ordered = np.sort(np.asarray(ids, dtype=np.int64))
    return ordered if part is None else ordered[part]


def _as_slice(selection: str) -> slice | None:
    """The slice that is meant, or ``None`` for a query."""
    try:
        index = string2index(selection)
    except ValueError:
        return None
    if isinstance(index, int):
        return slice(index, index + 1 or None)
    return index if isinstance(index, slice) else None


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is missing: pip install 'ase_finetune[lmdb]'"
    return f"{type(error).__name__}: {error}"
