"""Structures from files, and back into files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import formats, write

from ase_finetune.cli.places import check_file
from ase_finetune.data.sources import load_structures
from ase_finetune.errors import InputError, OutputError


def read_structures(paths: Sequence[str], name: str = "structures") -> list[Atoms]:
    """Structures of files that ASE reads (``file@index`` for some of them), in the order given.

    Raises
    ------
    DataError
        If a file is missing, cannot be read or holds nothing.
    """
    return [origin.atoms for origin in load_structures(list(paths), name)]


def check_output(path: str, *, overwrite: bool, inputs: Sequence[str]) -> None:
    """Refuse, before the work, what could not be written after it; :func:`check_file` with the format.

    Raises
    ------
    InputError
        Also if ASE has no format for its name, or cannot write it.
    """
    check_file(path, overwrite=overwrite, inputs=inputs)
    kind = _format(Path(path))
    if not kind.can_write:
        raise InputError(f"{path}: ASE cannot write the format {kind.name}; .extxyz and .traj are good ones")


def check_count(path: str, count: int) -> None:
    """Refuse a format that cannot hold so many structures.

    Raises
    ------
    InputError
        Then.
    """
    kind = _format(Path(path))
    if count > 1 and kind.single:
        raise InputError(f"{path}: a {kind.name} file holds one structure, and these are {count}; use .extxyz")


def write_structures(path: str, structures: Sequence[Atoms]) -> None:
    """Write a file, or leave the earlier one as it was.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    target = Path(path)
    # The ending stays: by it ASE chooses the compression.
    part = target.with_name(f".{uuid.uuid4().hex[:12]}.part.{target.name}")
    try:
        write(part, list(structures), format=_format(target).name)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _format(path: Path) -> Any:
    try:
        return formats.ioformats[formats.filetype(path.name, read=False)]
    except (formats.UnknownFileTypeError, KeyError) as error:
        raise InputError(f"{path}: ASE knows no format of this name; .extxyz and .traj are good ones") from error
