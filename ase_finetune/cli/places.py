"""Where a verb reads and writes, checked before the work: what cannot end well does not begin."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ase_finetune.errors import InputError, OutputError, OutputExistsError
from ase_finetune.files import is_there


def check_file(output: str | None, *, overwrite: bool, inputs: Iterable[str | None] = ()) -> None:
    """Refuse a place where a file could not be written, or should not be.

    Parameters
    ----------
    output
        The file; nothing is checked if ``None``.
    overwrite
        Whether an existing file may be replaced.
    inputs
        Files that are read (``file@index`` too), which are never replaced.

    Raises
    ------
    InputError
        If it is one of the inputs.
    OutputExistsError
        If it exists and must not be replaced.
    OutputError
        If it is a folder, or its folder does not exist or cannot be written to.
    """
    if output is None:
        return
    target = Path(output)
    if target.is_dir():
        raise OutputError(f"{output} is a folder; name a file in it")
    for name in inputs:
        if name is not None and any(_same(target, file) for file in (name, name.rpartition("@")[0])):
            raise InputError(f"{output} is what is read; choose another name for the output")
    if is_there(target) and not overwrite:
        raise OutputExistsError(f"{output} exists; choose another name or give --overwrite")
    if not target.parent.is_dir():
        raise OutputError(f"{output} cannot be written: there is no folder {target.parent}")
    _try_to_write(target.parent, output)


def check_folder(output: str | None) -> None:
    """Refuse a folder that could neither be made nor written to.

    Raises
    ------
    OutputError
        Then, or if it is a file.
    """
    if output is None:
        return
    there = Path(output)
    while not is_there(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise OutputError(f"{output} cannot be a folder: {there} is a file")
    _try_to_write(there, output)


def _same(target: Path, name: str) -> bool:
    try:
        return bool(name) and target.samefile(name)
    except (OSError, ValueError):
        return False


def _try_to_write(folder: Path, output: str) -> None:
    """A try: permissions alone do not show it, for example on a disk that is mounted for reading."""
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
        os.close(descriptor)
        Path(name).unlink()
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {folder}: {error.strerror or error}") from error
