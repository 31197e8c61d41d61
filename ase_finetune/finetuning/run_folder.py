"""The folder of a run: written from the first epoch on, so that a run that dies leaves its best model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ase_finetune.errors import InputError, OutputExistsError
from ase_finetune.finetuning.history import Log, write_csv
from ase_finetune.finetuning.training import Trainer
from ase_finetune.potentials import save_potential
from ase_finetune.potentials.base import Potential


class RunFolder:
    """Writes ``model``, ``history.csv``, ``run.json`` and ``log.txt`` into a folder of its own.

    Parameters
    ----------
    path
        Made if need be; must not hold anything.

    Raises
    ------
    OutputExistsError
        If the folder exists and is not empty, or is a file.
    InputError
        If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputExistsError(f"{path} exists and is not empty; choose another output folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"output folder {path} cannot be written: {error.strerror}") from error
        self.path = path
        self.model = path / "model"

    def write_epoch(self, trainer: Trainer, metadata: dict[str, Any], log: Log) -> None:
        """Keep the history so far and, after the best epoch so far, its weights."""
        write_csv(trainer.rows, self.path / "history.csv")
        self._write_log(log)
        if trainer.best_epoch == trainer.rows[-1]["epoch"]:
            save_potential(trainer.evaluated, self.model, metadata=metadata, overwrite=True)

    def write_result(self, potential: Potential, metadata: dict[str, Any], log: Log) -> None:
        """The final state of everything."""
        save_potential(potential, self.model, metadata=metadata, overwrite=True)
        self.write_metadata(metadata)
        self._write_log(log)

    def write_metadata(self, metadata: dict[str, Any]) -> None:
        """``run.json``: what was asked for, on what, with which versions and result."""
        (self.path / "run.json").write_text(json.dumps(metadata, indent=1), encoding="utf-8")

    def _write_log(self, log: Log) -> None:
        (self.path / "log.txt").write_text("\n".join(log.lines) + "\n", encoding="utf-8")
