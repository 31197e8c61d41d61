"""The training loop: epochs of target and replay steps, validation, and the choice of the best weights."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from tqdm import tqdm

from ase_finetune.continual import EWCPenalty
from ase_finetune.errors import CheckpointError, TrainingError
from ase_finetune.finetuning.best import Best, Selection
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.frame_task import Replay
from ase_finetune.finetuning.history import Columns, Log, epoch_row, header_line
from ase_finetune.finetuning.kept import Kept
from ase_finetune.finetuning.progress import Progress
from ase_finetune.finetuning.sampling import endless_batches, epoch_batches
from ase_finetune.finetuning.state import State
from ase_finetune.finetuning.stepping import Stepper
from ase_finetune.finetuning.tasks import Measured, Task
from ase_finetune.finetuning.updating import Piece
from ase_finetune.metrics import Errors, evaluate
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.memory import peak_memory


class Keeper(Protocol):
    """Who writes down how far a training is."""

    def after_step(self, trainer: Trainer) -> None:
        """Called after every iteration; may stop the training by raising."""

    def after_epoch(self, trainer: Trainer) -> None:
        """Called before the first epoch and after every one."""

    def after_training(self, trainer: Trainer) -> None:
        """Called once all epochs are over, with the weights of the last one, before the best ones are loaded."""


class Trainer:
    """Fine-tunes a potential in place on a task and ends with the best weights it saw.

    Parameters
    ----------
    potential
        Its trainable parameters are changed.
    task
        What is trained on and judged by.
    replay
        Old structures to train on in between, those that are held out to watch forgetting, and how much may be
        forgotten.
    config
        The options.
    penalty
        EWC, or ``None``.
    log
        Where epochs are logged.
    processes
        Share the work; all make the same steps.
    """

    def __init__(
        self,
        potential: Potential,
        task: Task,
        replay: Replay,
        config: FinetuneConfig,
        penalty: EWCPenalty | None,
        log: Log,
        processes: Processes = ALONE,
    ) -> None:
        self.potential = potential
        self.task = task
        self.replay = replay
        self.config = config
        self.penalty = penalty
        self.log = log
        self.processes = processes
        self.rows: list[dict[str, Any]] = []
        self.keeper: Keeper | None = None
        self._selection = Selection(replay.forgetting, config.keep)
        self.progress = Progress()
        self._clock = 0.0
        self._stepper = Stepper(potential, task, config, penalty, task.epochs * self._steps_per_epoch, processes)
        self._replay_pieces = self._replay_from(0)

    def fit(self) -> None:
        """Run all epochs, or those that are left after :meth:`load`, and load the best weights.

        Raises
        ------
        TrainingError
            If losses or gradients are not finite several times in a row; the frames are named.
        """
        if not self.initial:
            self._begin()
        try:
            while self.progress.epoch <= self.task.epochs and not self._stops_early():
                self._epoch()
            if self.keeper is not None:
                self.keeper.after_training(self)
            self._selection.keep_to_bound(self.potential, self._errors_on_old, self._errors)
        finally:
            self.best.load_into(self.potential)

    @property
    def best(self) -> Best:
        """The best weights so far."""
        return self._selection.best

    def kept(self) -> Kept:
        """What the training ended with, and why."""
        return self._selection.kept([row for row in self.rows if row["stage"] == self.task.name])

    @property
    def initial(self) -> dict[str, Measured | None]:
        """Errors before the first epoch, on every set; empty until they are known."""
        return self._selection.initial

    @property
    def columns(self) -> Columns:
        """What the history keeps and the table of epochs shows."""
        return replace(self.task.columns, penalty=self.penalty is not None)

    def _begin(self) -> None:
        errors = {"train": self.task.untouched, **self._errors(self.potential)}
        for name in ("valid", "replay") if self.config.bound is not None else ("valid",):
            judged = errors[name]
            if judged is not None and not math.isfinite(judged.loss):
                raise TrainingError(f"the loss of the untouched model on the {name} structures is {judged.loss}")
        self._selection.begin(errors, self.potential)
        columns, forgetting = self.columns, self.replay.forgetting
        risen = 0.0 if forgetting is None else forgetting.begin(errors["replay"], self.log)
        self.log(header_line(columns))
        row = epoch_row(0, errors, columns, learning_rate=0.0, penalty=0.0, seconds=0.0, score=0.0, forgetting=risen)
        self.log.epoch({"stage": self.task.name, **row}, columns, best=True)
        self.task.begin_epoch()
        self._clock = time.perf_counter()
        if self.keeper is not None:
            self.keeper.after_epoch(self)

    def _epoch(self) -> None:
        progress = self.progress
        self._clock = time.perf_counter() - progress.seconds
        if progress.steps == 0:
            progress.learning_rate = self._stepper.learning_rate
        # Processors may differ in a last digit, which would add up over a run.
        named = [*self.potential.native_parameters(), *self.evaluated.native_parameters()]
        own = [parameter for parameter, _ in self.task.own_parameters()]
        self.processes.same_([*(parameter for _, parameter in named), *own])
        what = f"epoch {progress.epoch} of {self.task.epochs}"
        with self.log.bar(self._steps_per_epoch, what, progress.steps) as bar:

            def on_step() -> None:
                progress.steps += 1
                bar.set_postfix_str(f"all epochs: {self._remaining()} left", refresh=False)
                bar.update()
                self._adapt_between()
                if self.keeper is not None:
                    self.keeper.after_step(self)

            order = epoch_batches(self.task.size, self.task.batch_size, self.config.seed, progress.epoch)
            self.train(order[progress.steps :], on_step)
        self._end_epoch()
        if self.keeper is not None:
            self.keeper.after_epoch(self)

    def _remaining(self) -> str:
        """Time that the steps of this and all further epochs still take, as far as is known by now."""
        done = self.progress.steps
        left = (self.task.epochs - self.progress.epoch + 1) * self._steps_per_epoch - done
        return tqdm.format_interval((time.perf_counter() - self._clock) / done * left)

    def _end_epoch(self) -> None:
        """Measure, choose, tell, and make ready for the next epoch."""
        progress, epoch = self.progress, self.progress.epoch
        trained = self.task.train_errors()
        for note in (*progress.notes(), *self.task.notes()):
            self.log(f"note: {note}")
        errors = {"train": trained, **self._errors(self.evaluated)}
        best = self._selection.offer(epoch, errors, self.evaluated, moved=not progress.skipped_in_a_row)
        forgetting = self.replay.forgetting
        values: dict[str, float] = {
            "learning_rate": progress.learning_rate,
            "penalty": self.penalty.value() if self.penalty is not None else 0.0,
            "ewc_lambda": self.penalty.strength if self.penalty is not None else 0.0,
            "skipped_steps": progress.skipped,
            "seconds": time.perf_counter() - self._clock,
            "peak_memory_gb": peak_memory(self.potential.device),
            "score": self._selection.score(errors),
            "forgetting": math.nan if forgetting is None else forgetting.rise(errors["replay"]),
            "best": best,
        }
        if forgetting is not None:
            forgetting.adapt(errors["replay"])
        self.rows.append({"stage": self.task.name, **epoch_row(epoch, errors, self.task.columns, **values)})
        self.log.epoch(self.rows[-1], self.columns, best)
        self.progress = progress.next_epoch()
        self._clock = time.perf_counter()
        self.task.begin_epoch()

    def _adapt_between(self) -> None:
        """Do not leave the strength of the penalty alone until the end of a long epoch."""
        forgetting, done = self.replay.forgetting, self.progress.steps
        if forgetting is None or done == self._steps_per_epoch:
            return
        if done % forgetting.measured_every(self.task.epochs, self._steps_per_epoch) == 0:
            forgetting.adapt(self._errors_on_old(self.evaluated))

    def train(self, order: Sequence[list[int]], on_step: Callable[[], object] | None = None) -> None:
        """One iteration on each batch of training examples, with the replay batches that come next."""
        for pieces in self.task.batches(order):
            self._iteration(pieces)
            if on_step is not None:
                on_step()

    def _iteration(self, target: list[Piece]) -> None:
        """One target batch and, with replay, one replay batch."""
        replay = next(self._replay_pieces, None)
        if replay is not None:
            self.progress.replayed += 1
        failures = self._stepper.iterate(target, replay)
        self.progress.count(failures, self.config.max_skipped_steps, self.log)

    def _replay_from(self, number: int) -> Iterator[list[Piece]]:
        """Pieces of the replay batches from this one on, without end; none without replay."""
        trained, config = self.replay.trained, self.config
        if trained is None:
            return iter(())
        batches = endless_batches(len(trained), config.replay_batch_size or config.batch_size, config.seed + 1)
        return trained.pieces(itertools.islice(batches, number, None))

    def state(self) -> State:
        """Everything that the rest of the training depends on. All processes have to call this together."""
        state = State()
        self._stepper.add_to(state)
        self._selection.add_to(state)
        seconds = time.perf_counter() - self._clock
        state.values |= {
            "progress": asdict(self.progress) | {"seconds": seconds},
            "rows": self.rows,
            # Each process has noted its own share.
            "tasks": self.processes.gather(self.task.state()),
        }
        return state

    def load(self, state: State) -> None:
        """Go on from what :meth:`state` gave.

        Raises
        ------
        CheckpointError
            If it is of another training.
        """
        try:
            self._load(state)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint does not fit this training: {error!r}") from error

    def _load(self, state: State) -> None:
        values = state.values
        self._stepper.load_from(state)
        self._selection.load_from(state, self.potential)
        self.progress = Progress(**values["progress"])
        if self.progress.epoch < 1 or self.progress.steps < 0:
            raise ValueError(f"it is in epoch {self.progress.epoch}, {self.progress.steps} steps into it")
        self.rows[:] = values["rows"]
        self._replay_pieces = self._replay_from(self.progress.replayed)
        self.task.begin_epoch()
        # With another number of processes the first one goes on from what all had noted.
        parts = values["tasks"]
        mine = parts if self.processes.is_first else []
        for part in [parts[self.processes.rank]] if len(parts) == self.processes.size else mine:
            self.task.load_state(part)

    @property
    def evaluated(self) -> Potential:
        """The potential that is judged and kept: the moving average where there is one."""
        return self._stepper.evaluated

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(self.task.size / self.task.batch_size)

    def _errors(self, potential: Potential) -> dict[str, Measured | None]:
        return {"valid": self.task.evaluate(potential), "replay": self._errors_on_old(potential)}

    def _errors_on_old(self, potential: Potential) -> Errors | None:
        watched = self.replay.watched
        with self.log.bar(math.ceil(len(watched) / self.processes.size), "old structures") as bar:
            shared: dict[str, Any] = {"on_structure": bar.update, "processes": self.processes}
            return evaluate(potential, watched, self.config.loss, **shared)

    def _stops_early(self) -> bool:
        patience = self.config.early_stopping
        if patience is None or not self._selection.stops_early(self.progress.epoch - 1, patience):
            return False
        self.log(f"stopped early: no better score for {self.config.early_stopping} epochs")
        return True
