"""Do the frames of an xyz file have as many lines as they say?

ASE looks for the frames by counting lines, and goes on counting where the file has ended long ago: a damaged
"99999999999" would take it hours.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from ase.io.formats import open_with_compression, string2index

from ase_finetune.errors import DataError

_SUFFIXES = (".xyz", ".extxyz")
_COMPRESSED = (".gz", ".bz2", ".xz")

#: Longer lines are none of a structure, but of a file that unpacks to far more than it is.
_LONGEST = 1 << 24


def check_counts(file: Path, selection: str, what: str) -> None:
    """Refuse a file of which a frame announces more atoms than there are lines.

    It is read line by line, which takes a small part of the time that ASE needs to understand it.

    Parameters
    ----------
    file
        Any file; only xyz files are looked at.
    selection
        As of :func:`ase.io.read`: what is behind the last frame selected is not looked at.
    what
        How messages name the file.

    Raises
    ------
    DataError
        Naming the frame and its line.
    """
    name = file.name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    if not name.endswith(_SUFFIXES) or not file.is_file():
        return
    try:
        with open_with_compression(str(file), "rb") as stream:
            _walk(stream, _frames_read(selection), what)
    except (OSError, EOFError) as error:
        raise DataError(f"{what} cannot be read: {error}") from error


def _walk(stream: IO[bytes], frames: int | None, what: str) -> None:
    number, frame = 1, 0
    while (header := _line(stream, number, what)) and (frames is None or frame < frames):
        if header.lstrip().startswith(b"VEC"):  # belongs to the frame before
            number += 1
            continue
        try:
            atoms = int(header)
        except ValueError:  # which ASE explains better
            return
        for index in range(atoms + 1):
            if not _line(stream, number + 1 + index, what):
                raise DataError(
                    f"{what}: frame {frame} (line {number}) says that it has {atoms} atoms, but the file ends after "
                    f"{max(index - 1, 0)} of them"
                )
        number, frame = number + atoms + 2, frame + 1


def _line(stream: IO[bytes], number: int, what: str) -> bytes:
    line = stream.readline(_LONGEST)
    if len(line) == _LONGEST:
        raise DataError(f"{what}: line {number} is longer than {_LONGEST >> 20} MB, as in no file of structures")
    return line


def _frames_read(selection: str) -> int | None:
    """How many frames from the first on ASE looks for; ``None`` for all."""
    try:
        index: Any = string2index(selection)
    except ValueError:
        return None
    stop = getattr(index, "stop", None)
    # One more than it needs; and all of them where a single frame is asked for.
    return int(stop) + 1 if isinstance(stop, int) and stop >= 0 else None
