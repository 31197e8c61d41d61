"""Logging epochs to TensorBoard and Weights & Biases, by the loggers made for Lightning Fabric."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase_finetune.errors import BackendNotInstalledError, InputError
from ase_finetune.files import make_folder, write_text
from ase_finetune.finetuning.config import LOGGERS, FinetuneConfig
from ase_finetune.finetuning.history import Log, Watcher
from ase_finetune.reporting.live import LivePicture, in_notebook

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger


class FabricWatcher:
    """Sends the rows of a history to a logger of Fabric.

    Parameters
    ----------
    logger
        Where to.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._step = 0

    def config(self, config: FinetuneConfig) -> None:
        """Log the options of the run."""
        self._logger.log_hyperparams(config.to_dict())

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Log one row; the step is the epoch, counted on over the stages."""
        stage = row["stage"]
        numbers = {
            f"{stage}/{name}": float(value)
            for name, value in row.items()
            if name != "epoch" and isinstance(value, (bool, int, float)) and not math.isnan(value)
        }
        self._logger.log_metrics(numbers, step=self._step)
        self._step += 1

    def skip(self, rows: int) -> None:
        """So many rows were logged before the run was interrupted."""
        self._step = rows

    def close(self, failed: bool) -> None:
        """Write what is left."""
        self._logger.finalize("failed" if failed else "success")
        finish = getattr(getattr(self._logger, "experiment", None), "finish", None)
        if finish is not None:  # else the next run of this process would go into the same one of Weights & Biases
            finish()


def build_watchers(config: FinetuneConfig, output: Path | None, log: Log) -> list[Watcher]:
    """The loggers that the config asks for, and a picture where the run is in a notebook.

    Parameters
    ----------
    config
        The options, which loggers record too.
    output
        Folder of the run.
    log
        Of the run.

    Raises
    ------
    InputError
        If there is no output folder.
    BackendNotInstalledError
        If a package is missing.
    """
    if config.loggers and output is None:
        raise InputError(f"loggers={list(config.loggers)} write into the output folder: give output=folder")
    loggers = [FabricWatcher(_build(name, output)) for name in config.loggers if output is not None]
    for logger in loggers:
        logger.config(config)
    pictures = [LivePicture()] if log.verbose and in_notebook() else []
    return [*loggers, *pictures]


def _build(name: str, output: Path) -> Logger:
    try:
        return _LOGGERS[name](output)
    except ModuleNotFoundError as error:
        raise BackendNotInstalledError(
            f"loggers=[{name!r}] needs a package that is not installed ({error}): pip install {LOGGERS[name]}"
        ) from error


def _tensorboard(output: Path) -> Logger:
    # Here, since it loads much that nobody needs without it.
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    return TensorBoardLogger(output, name="", version="", sub_dir="tensorboard")


def _wandb(output: Path) -> Logger:
    from wandb.integration.lightning.fabric import WandbLogger

    logger: Logger = WandbLogger(
        project="ase_finetune", name=output.name, id=_run_id(output), resume="allow", save_dir=output
    )
    return logger


_LOGGERS: dict[str, Callable[[Path], Logger]] = {"tensorboard": _tensorboard, "wandb": _wandb}


def _run_id(output: Path) -> str:
    """By which an interrupted run goes on under its name."""
    file = output / "wandb" / "id.txt"
    if not file.is_file():
        make_folder(file.parent)
        write_text(file, uuid.uuid4().hex[:12])
    return file.read_text(encoding="utf-8").strip()
