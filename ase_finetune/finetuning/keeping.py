"""When a run is written down, and when it stops because it was asked to."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ase_finetune.errors import CheckpointError, RunStoppedError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.context import Context
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.prepared import Prepared
from ase_finetune.finetuning.run_folder import RunFolder
from ase_finetune.finetuning.signals import StopSignals
from ase_finetune.finetuning.state import State
from ase_finetune.finetuning.training import Trainer
from ase_finetune.parallel import Processes
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.formats import RUN_MODEL
from ase_finetune.reporting import RunRecord
from ase_finetune.representations import counted

T = TypeVar("T")


class RunKeeper:
    """Writes a run down: after every epoch, every few minutes, and when a signal asks it to stop.

    To be entered; leaving it gives the folder free. All processes of a run have one.

    Parameters
    ----------
    output
        The folder of the run.
    resume
        Go on with the run in it.
    log
        Of the run.
    config
        The options.
    processes
        Stop together; the first one writes.

    Raises
    ------
    OutputExistsError, OutputError
        As :class:`RunFolder`.
    """

    def __init__(self, output: Path, resume: bool, log: Log, config: FinetuneConfig, processes: Processes) -> None:
        self._folder = processes.on_first(lambda: RunFolder(output, log, resume))
        self._processes = processes
        self._interval = 60 * config.checkpoint_minutes
        self._written = time.monotonic()
        self._signals = StopSignals()
        self._open = ExitStack()
        self._run: Context | None = None
        #: Where the best model is, once an epoch has ended.
        self.best_model = output / RUN_MODEL

    def __enter__(self) -> RunKeeper:
        if self._folder is not None:
            self._open.callback(self._folder.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def prepared(self) -> Prepared:
        """What an earlier start found before its first step; nothing if there was none."""
        return self._processes.gather(self._on_first(RunFolder.prepared))[0] or Prepared()

    def begin(self, run: Context) -> State | None:
        """Write down what was found before the first step, and note signals from now on.

        Returns
        -------
        The last good checkpoint, in all processes, if the run goes on from one. Log, and finished stages in the
        metadata, are then those of that moment.

        Raises
        ------
        CheckpointError
            If no checkpoint is readable, or the last good one is of another run.
        """
        self._run = run
        self._on_first(lambda folder: folder.begin(run.prepared, run.metadata))
        self._open.enter_context(self._signals)
        lines = len(run.log.lines)
        state = self._processes.gather(self._on_first(RunFolder.latest))[0]
        if state is None:
            return None
        damage = run.log.lines[lines:]
        try:
            run.metadata["stages"] = list(state.values["stages"])
            run.log.lines[:] = [*map(str, state.values["log"]), *damage]
            before = dict(state.values["surroundings"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit this run: {error!r}") from error
        changes = [f"{k}: {before.get(k)} then, {v} now" for k, v in run.surroundings.items() if before.get(k) != v]
        if changes:
            run.log(f"note: last digits may differ from those of an uninterrupted run: {'; '.join(changes)}")
        return state

    def write_result(self, potential: Potential, rows: list[dict[str, Any]]) -> None:
        """The final state of everything; all processes wait for it."""
        assert self._run is not None
        metadata = self._run.metadata
        self._on_first(lambda folder: folder.write_result(potential, metadata, rows))

    def write_report(self, record: RunRecord) -> None:
        """The report and what it was made of; all processes wait for it."""
        assert self._run is not None
        with self._run.log.timed("report"):
            self._on_first(lambda folder: folder.write_report(record))

    def write_log(self, outcome: str) -> None:
        """The log, with where everything is, and the outcome of the run as its last line."""
        self._on_first(lambda folder: folder.write_log(outcome))

    def _on_first(self, work: Callable[[RunFolder], T]) -> T | None:
        folder = self._folder
        return self._processes.on_first(lambda: None if folder is None else work(folder))

    def after_epoch(self, trainer: Trainer) -> None:
        """Write model, history and checkpoint.

        Raises
        ------
        RunStoppedError
            As :meth:`after_step`.
        """
        assert self._run is not None
        metadata = self._run.metadata
        self._on_first(lambda folder: folder.write_epoch(trainer, metadata))
        self._write(trainer)
        _, asked = self._wanted()
        if asked:
            raise _stopped(asked, trainer)

    def after_training(self, trainer: Trainer) -> None:
        """Write the model with the weights of the last epoch."""
        assert self._run is not None
        metadata = self._run.metadata
        self._on_first(lambda folder: folder.write_last(trainer.evaluated, metadata))

    def after_step(self, trainer: Trainer) -> None:
        """Write a checkpoint if it is time, or if the run is to stop.

        Raises
        ------
        RunStoppedError
            If a signal came, to any of the processes.
        """
        due, asked = self._wanted()
        if due or asked:
            self._write(trainer)
        if asked:
            raise _stopped(asked, trainer)

    def _wanted(self) -> tuple[bool, int]:
        """Whether a checkpoint is due, and the signal that came, if one did; the same in all processes."""
        due = self._processes.is_first and time.monotonic() - self._written > self._interval
        asked = self._signals.received or 0
        counts = self._processes.total([float(due), float(bool(asked))])
        return bool(counts[0]), max(self._processes.gather(asked)) if counts[1] else 0

    def _write(self, trainer: Trainer) -> None:
        assert self._run is not None
        state = trainer.state()
        state.values["stages"] = self._run.metadata["stages"]
        state.values["log"] = self._run.log.lines
        state.values["surroundings"] = self._run.surroundings
        self._on_first(lambda folder: folder.checkpoint(state))
        self._written = time.monotonic()


def _stopped(number: int, trainer: Trainer) -> RunStoppedError:
    where = f"in epoch {trainer.progress.epoch}, {counted(trainer.progress.steps, 'step')} into it"
    return RunStoppedError(
        f"stopped by {signal.Signals(number).name} {where}; resume=True goes on from there",
        number,
    )
