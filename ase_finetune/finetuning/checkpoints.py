"""The checkpoints of a run: the last two good ones, one file each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ase_finetune.errors import CheckpointError
from ase_finetune.files import make_folder, read_sealed, remove_parts, write_sealed
from ase_finetune.finetuning.state import State

_KIND = "checkpoint-1"
_PREFIX, _SUFFIX = "checkpoint-", ".safetensors"

#: How many are kept: one may turn out damaged.
_KEPT = 2


class Checkpoints:
    """Writes and finds the checkpoints in a folder of their own.

    Parameters
    ----------
    folder
        Made with the first checkpoint.
    log
        Called with a line about each damaged file.
    """

    def __init__(self, folder: Path, log: Callable[[str], object]) -> None:
        self.folder = folder
        self._log = log
        self._last = 0

    def write(self, state: State) -> Path:
        """Write the next checkpoint, then remove those that are too many.

        Raises
        ------
        OutputError
            If it cannot be written; the earlier ones are as they were.
        """
        make_folder(self.folder)
        self._last += 1
        path = self.folder / f"{_PREFIX}{self._last:06d}{_SUFFIX}"
        write_sealed(path, state.tensors, state.values, kind=_KIND)
        for number, old in self._found():
            if number <= self._last - _KEPT:
                old.unlink(missing_ok=True)
        return path

    def latest(self) -> State | None:
        """The last good checkpoint, or ``None`` if none was written yet.

        Raises
        ------
        CheckpointError
            If there are checkpoints, and all are damaged.
        """
        remove_parts(self.folder)
        damage = ""
        for number, path in reversed(self._found()):
            try:
                tensors, values = read_sealed(path, kind=_KIND)
            except CheckpointError as error:
                damage = str(error)
                self._log(f"note: {error}; the checkpoint before it is used")
                continue
            self._last = number
            return State(tensors, values)
        if damage:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read: {damage}; remove them to start training again"
            )
        return None

    def _found(self) -> list[tuple[int, Path]]:
        found = []
        for path in self.folder.glob(f"{_PREFIX}*{_SUFFIX}"):
            number = path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
            if number.isdecimal():
                found.append((int(number), path))
        return sorted(found)
