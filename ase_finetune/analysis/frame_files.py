"""Trajectories on disk that hold complete frames only, whenever the writing ends."""

from __future__ import annotations

import io
import os
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Any

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import Trajectory, write

from ase_finetune.errors import InputError, OutputError, OutputExistsError
from ase_finetune.files import is_there

#: Formats by the end of the name.
SUFFIXES = (".traj", ".extxyz", ".xyz", ".db")


class FrameFile:
    """A trajectory that grows frame by frame and can be read at any time.

    Parameters
    ----------
    path
        Ends in ``.traj``, ``.extxyz``, ``.xyz`` (extended as well) or ``.db``; nothing may be there yet.

    Raises
    ------
    InputError
        If the name ends in something else.
    OutputExistsError
        If the file exists.
    OutputError
        If it cannot be written; the frames before are still there.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix not in SUFFIXES:
            raise InputError(
                f"output={str(path)!r} must end in one of {', '.join(SUFFIXES)}: frames are appended to it"
            )
        if not path.parent.is_dir():
            raise OutputError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
        if not os.access(path.parent, os.W_OK):
            raise OutputError(f"{path} cannot be written: no permission to write in {path.parent.absolute()}")
        if is_there(path):
            raise OutputExistsError(f"{path} exists; choose another name")
        self.path = path
        self._trajectory: Any = None
        try:
            if path.suffix == ".traj":
                self._trajectory = Trajectory(path, "w")
            elif path.suffix != ".db":
                path.touch(exist_ok=False)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error

    def append(self, atoms: Atoms) -> None:
        """Add a frame with the momenta and results that the atoms have, but without their constraints."""
        frame = bare_frame(atoms)
        try:
            if self._trajectory is not None:
                self._trajectory.write(frame)
            elif self.path.suffix == ".db":
                with connect(self.path) as database:
                    database.write(frame)
            else:
                _append_whole(self.path, _as_text(frame))
        except (OSError, sqlite3.Error) as error:
            why = getattr(error, "strerror", None) or error
            raise OutputError(f"{self.path} cannot be written: {why}; its earlier frames are whole") from error

    def __enter__(self) -> FrameFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._trajectory is not None:
            self._trajectory.close()


def bare_frame(atoms: Atoms) -> Atoms:
    """A copy with what the calculator found for these positions, and no constraints."""
    frame = atoms.copy()
    frame.set_constraint()
    results = {} if atoms.calc is None else atoms.calc.results
    kept = {name: results[name] for name in ("energy", "forces", "stress") if name in results}
    frame.calc = SinglePointCalculator(frame, **kept)
    return frame


def _as_text(frame: Atoms) -> bytes:
    text = io.StringIO()
    write(text, frame, format="extxyz")
    return text.getvalue().encode()


def _append_whole(path: Path, data: bytes) -> None:
    """Append all or nothing, as far as the disk can be asked."""
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            # One call: a process that is killed meanwhile leaves all of it or nothing.
            if file.write(data) != len(data):
                raise OSError("no space left")  # noqa: TRY301 - is reported as the operating system's own are
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
