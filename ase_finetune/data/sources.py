"""From whatever holds structures (files, lists) to ASE structures that know where they come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ase import Atoms
from ase.io import read

from ase_finetune.errors import DataError, InputError

#: A file that ASE reads, several of them, or structures.
Source: TypeAlias = "str | Path | Atoms | Iterable[str | Path] | Iterable[Atoms]"


@dataclass(frozen=True)
class Origin:
    """A structure, the file it is from (or "list") and its position there."""

    atoms: Atoms
    source: str
    index: int


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
    if isinstance(source, Atoms):
        source = [source]
    if isinstance(source, str | Path):
        return _load_file(source, name)
    try:
        items: list[Any] = list(source)
    except TypeError as error:
        raise InputError(_wrong_source(name, source)) from error
    if not items:
        raise DataError(f"{name}: the list holds no structures")
    if all(isinstance(item, Atoms) for item in items):
        return [Origin(atoms, "list", index) for index, atoms in enumerate(items)]
    for item in items:
        if not isinstance(item, str | Path):
            raise InputError(_wrong_source(name, item))
    return [origin for item in items for origin in _load_file(item, name)]


def _load_file(path: str | Path, name: str) -> list[Origin]:
    file, selection = _split_selection(path)
    if not file.exists():
        raise DataError(f"{name}: there is no file '{file}'")
    try:
        # Explicitly: given an index, ASE ignores the one behind the @ sign.
        frames = read(file, index=selection, do_not_split_by_at_sign=True)
    except Exception as error:
        # The readers raise whatever their format made them stumble over.
        raise DataError(f"{name}: ASE cannot read '{path}' ({type(error).__name__}: {error})") from error
    if isinstance(frames, Atoms):
        frames = [frames]
    if not frames:
        raise DataError(f"{name}: '{path}' holds no structures")
    return [Origin(atoms, Path(path).name, index) for index, atoms in enumerate(frames)]


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
