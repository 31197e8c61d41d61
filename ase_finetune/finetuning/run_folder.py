"""The folder of a run: what it holds at any moment is enough to use the best model and to go on."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ase_finetune.errors import CheckpointError, OutputError, OutputExistsError
from ase_finetune.files import make_folder, remove_parts, to_json, write_text
from ase_finetune.finetuning.checkpoints import Checkpoints
from ase_finetune.finetuning.config import LOGGERS, FinetuneConfig
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.prepared import Prepared
from ase_finetune.finetuning.state import State
from ase_finetune.finetuning.training import Trainer
from ase_finetune.potentials import save_potential
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.formats import RUN_FILE, RUN_MODEL
from ase_finetune.reporting import RECORD_FILE, RunRecord, write_report

_LOCK = ".lock"

#: Seconds that a resumed run waits for the one before it, whose last processes may be about to end.
_PATIENCE = 10.0


class RunFolder:
    """Writes ``model``, ``last``, ``history.csv``, ``run.json``, ``log.txt``, ``checkpoints`` into a folder of its own.

    Parameters
    ----------
    path
        Made if need be; must not hold anything but, with ``resume``, an earlier start of the run.
    log
        For notes on damaged checkpoints.
    resume
        Go on with the run in the folder, if there is one.

    Raises
    ------
    OutputExistsError
        If the folder holds something else, or another process is writing into it.
    OutputError
        If it cannot be written.
    """

    def __init__(self, path: Path, log: Log, resume: bool = False) -> None:
        self.path = path
        self.model, self.last = path / RUN_MODEL, path / "last"
        self._log = log
        self._checkpoints = Checkpoints(path / "checkpoints", log)
        # Two copies: without it nothing can be resumed.
        self._prepared = [path / "checkpoints" / f"prepared-{copy}.safetensors" for copy in (1, 2)]
        if path.exists() and not path.is_dir():
            raise OutputExistsError(f"{path} exists and is not a folder; choose another output folder")
        self._made = _missing(path)
        make_folder(path)
        self._check_content(resume)  # before anything is written into the folder of somebody else
        self._lock = self._locked(resume)
        try:
            self._check_content(resume)  # and again: another run may have been written meanwhile
        except BaseException:
            self._lock.release()
            raise
        for folder in (path, path / "checkpoints"):
            remove_parts(folder)

    def close(self) -> None:
        """Let others write into the folder; one in which nothing was begun is as it was before."""
        if not self.is_started:
            self._withdraw()
        self._lock.release()

    @property
    def is_started(self) -> bool:
        """Whether a run got as far as its first step here."""
        return any(file.exists() for file in self._prepared)

    def prepared(self) -> Prepared:
        """What an earlier start found before its first step.

        Raises
        ------
        CheckpointError
            If both copies are damaged.
        """
        if not self.is_started:
            return Prepared()
        for file in self._prepared:
            try:
                return Prepared.read(file)
            except CheckpointError as error:
                damage = str(error)
                self._log(f"note: {damage}")
        raise CheckpointError(
            f"the run in {self.path} cannot be resumed: {damage}, and so is its copy; start anew in another folder"
        )

    def begin(self, prepared: Prepared, metadata: dict[str, Any]) -> None:
        """Note what has been found and asked for, before the first step."""
        if not self.is_started:
            make_folder(self._prepared[0].parent)
            for file in self._prepared:
                prepared.write(file)
        if not (self.path / RUN_FILE).exists():  # those of a finished run hold more
            self.write_metadata(metadata)

    def latest(self) -> State | None:
        """The last good checkpoint; ``None`` if none was written."""
        return self._checkpoints.latest()

    def checkpoint(self, state: State) -> None:
        """Write how far the run is."""
        self._checkpoints.write(state)
        self._write_log()

    def write_epoch(self, trainer: Trainer, metadata: dict[str, Any]) -> None:
        """Keep the history so far and, after the best epoch so far, its weights."""
        self._write_history(trainer.rows)
        if trainer.rows and trainer.best.epoch == trainer.rows[-1]["epoch"]:
            save_potential(trainer.evaluated, self.model, metadata=metadata, overwrite=True)

    def write_last(self, potential: Potential, metadata: dict[str, Any]) -> None:
        """The model with the weights of the last epoch, whether they are kept or not."""
        save_potential(potential, self.last, metadata=metadata, overwrite=True)

    def write_result(self, potential: Potential, metadata: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """The final state of everything."""
        save_potential(potential, self.model, metadata=metadata, overwrite=True)
        self._write_history(rows)
        self.write_metadata(metadata)
        self._write_log()

    def write_report(self, record: RunRecord) -> None:
        """The report, and what it was made of, to make it anew."""
        record.write(self.path / RECORD_FILE)
        write_report(record, self.path, defaults=FinetuneConfig().to_dict())

    def write_log(self, outcome: str) -> None:
        """``log.txt``, with where everything is, and the outcome of the run as its last line."""
        names = (RUN_MODEL, self.last.name, "report.html", "history.csv", RUN_FILE, "log.txt")
        there = [name for name in names if (self.path / name).exists() or name == "log.txt"]
        self._log(f"written to {self.path}: {', '.join(there)}; checkpoints are there to resume the run")
        self._log(outcome)
        self._write_log()

    def write_metadata(self, metadata: dict[str, Any]) -> None:
        """``run.json``: what was asked for, on what, with which versions and result."""
        write_text(self.path / RUN_FILE, to_json(metadata, "the metadata of the run"))

    def _write_history(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            write_text(self.path / "history.csv", history_csv(rows))

    def _write_log(self) -> None:
        write_text(self.path / "log.txt", "\n".join(self._log.lines) + "\n")

    def _withdraw(self) -> None:
        """Remove what a run made that failed before its first step: a folder in the way of the next try.

        Only what has a name of ours, and folders only if nothing is left in them.
        """
        # While it is locked: a process that waits for the lock notices that the file is gone, and makes a new one.
        with contextlib.suppress(OSError):
            (self.path / _LOCK).unlink(missing_ok=True)
        for name in LOGGERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.path / "checkpoints").rmdir()
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _locked(self, resume: bool) -> FileLock:
        # Locks of the operating system end with the process that holds them, however it ends.
        lock = FileLock(self.path / _LOCK, timeout=_PATIENCE if resume else 0.0)
        try:
            lock.acquire()
        except Timeout:
            raise OutputExistsError(
                f"another process is writing into {self.path}; wait for it, or choose another output folder"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise OutputError(f"output folder {self.path} cannot be written: {error}") from error
        return lock

    def _check_content(self, resume: bool) -> None:
        """Take an empty folder, or what an earlier start left, and nothing else."""
        try:
            held = {entry.name for entry in self.path.iterdir() if not _is_leftover(entry)} - {_LOCK}
        except OSError as error:
            raise OutputError(f"output folder {self.path} cannot be read: {error.strerror}") from error
        if not held:
            return
        # What is written before the first step says that the rest is ours.
        if not self.is_started:
            if held == {"checkpoints"} and self._is_empty(self.path / "checkpoints"):
                return
            raise OutputExistsError(f"{self.path} exists and is not empty; choose another output folder")
        if not resume:
            raise OutputExistsError(
                f"{self.path} holds a run already; pass resume=True to go on with it, or choose another output folder"
            )

    @staticmethod
    def _is_empty(folder: Path) -> bool:
        return folder.is_dir() and all(_is_leftover(entry) for entry in folder.iterdir())


def _missing(path: Path) -> list[Path]:
    """What has to be made for a folder to be there, the innermost first."""
    return list(itertools.takewhile(lambda folder: not folder.exists(), [path, *path.parents]))


def _is_leftover(path: Path) -> bool:
    """Whether a file is what a killed write leaves behind."""
    return path.name.startswith(".") and path.suffix == ".part"


def history_csv(rows: list[dict[str, Any]]) -> str:
    """The history as CSV: energies in meV/atom, forces in meV/Å, stress in kbar, distances in Å.

    Stages of different kinds have different columns; what a stage does not have stays empty.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
