"""The training loop: epochs of target and replay steps, validation, and the choice of the best weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ase_finetune.continual import EWCPenalty
from ase_finetune.errors import TrainingError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.frame_task import Replay
from ase_finetune.finetuning.history import Log, epoch_line, epoch_row, header_line
from ase_finetune.finetuning.optimizing import Piece, Updater, build_optimizer, build_schedule
from ase_finetune.finetuning.tasks import Measured, Task
from ase_finetune.metrics import evaluate
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.base import Potential


class Trainer:
    """Fine-tunes a potential in place on a task and ends with the best weights it saw.

    Parameters
    ----------
    potential
        Its trainable parameters are changed.
    task
        What is trained on and judged by.
    replay
        Old structures to train on in between, and those that are held out to watch forgetting.
    config
        The options.
    penalty
        EWC, or ``None``.
    log
        Where epochs are told.
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
        #: Called with the trainer after every epoch, for example to write files.
        self.on_epoch: Callable[[Trainer], None] | None = None
        self.initial: dict[str, Measured | None] = {}
        self._generator = torch.Generator().manual_seed(config.seed)
        parameters = [parameter for _, parameter in potential.native_parameters(trainable_only=True)]
        optimizer = build_optimizer(parameters, task.learning_rate, config)
        for parameter, rate in task.own_parameters():
            optimizer.add_param_group({"params": [parameter], "lr": rate, "weight_decay": 0.0})
        self._updater = Updater(optimizer, penalty, task.clip_norm, processes)
        self._schedule = build_schedule(optimizer, config, task.epochs * self._steps_per_epoch)
        self._average = None
        if config.ema_decay is not None:
            self._average = AveragedModel(potential, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self._replay_batch: list[int] | None = None
        self._replay_pieces = iter(()) if replay.trained is None else replay.trained.pieces(self._shuffled_replay())
        self._best_score, self._best_epoch = math.inf, 0
        #: Errors of the weights that are kept.
        self.best_errors: dict[str, Measured | None] = {}
        self._best_weights: dict[str, Tensor] = {}

    @property
    def best_epoch(self) -> int:
        """Epoch the kept weights are from; 0 is the potential before training."""
        return self._best_epoch

    def fit(self) -> None:
        """Run all epochs and load the best weights.

        Raises
        ------
        TrainingError
            If a loss is not finite; the best weights so far are kept and the frames are named.
        """
        self.initial = {"train": self.task.untouched, **self._errors(self.potential)}
        self._keep_if_best(0, self.initial)
        columns = self.task.columns
        self.log(header_line(columns))
        row = epoch_row(0, self.initial, columns, learning_rate=0.0, penalty=0.0, seconds=0.0)
        self.log(epoch_line(row, columns, best=True))
        try:
            for epoch in range(1, self.task.epochs + 1):
                self._epoch(epoch)
                if self._stops_early(epoch):
                    break
        finally:
            self._load_best()

    def _epoch(self, epoch: int) -> None:
        start = time.perf_counter()
        rate = float(self._schedule.get_last_lr()[0])
        # Processors may differ in a last digit, which would add up over a run.
        named = [*self.potential.native_parameters(), *self.evaluated.native_parameters()]
        own = [parameter for parameter, _ in self.task.own_parameters()]
        self.processes.same_([*(parameter for _, parameter in named), *own])
        indices = torch.randperm(self.task.size, generator=self._generator).tolist()
        order = [
            indices[first : first + self.task.batch_size] for first in range(0, len(indices), self.task.batch_size)
        ]
        with self.log.bar(self._steps_per_epoch, f"epoch {epoch}") as bar:
            self.train(order, bar.update)
        trained = self.task.train_errors()
        for note in self.task.notes():
            self.log(f"note: {note}")
        errors = {"train": trained, **self._errors(self.evaluated)}
        best = self._keep_if_best(epoch, errors)
        penalty = self.penalty.value() if self.penalty is not None else 0.0
        seconds = time.perf_counter() - start
        values = {"learning_rate": rate, "penalty": penalty, "seconds": seconds, "best": best}
        self.rows.append({"stage": self.task.name, **epoch_row(epoch, errors, self.task.columns, **values)})
        self.log(epoch_line(self.rows[-1], self.task.columns, best))
        if self.on_epoch is not None:
            self.on_epoch(self)

    def train(self, order: Sequence[list[int]], on_step: Callable[[], object] | None = None) -> None:
        """One iteration on each batch of training examples, with the replay batches that come next."""
        for batch, pieces in zip(order, self.task.batches(order), strict=True):
            self._iteration(batch, pieces)
            if on_step is not None:
                on_step()

    def _iteration(self, batch: list[int], target: list[Piece]) -> None:
        """One target batch and, with replay, one replay batch."""
        replay = next(self._replay_pieces, None)
        try:
            if replay is None:
                self._updater.update(target)
            elif self.config.replay_schedule == "joint":
                self._updater.update([*target, *replay])
            else:
                self._updater.update(target)
                self._updater.update(replay)
        except TrainingError as error:
            where = f"training {self.task.name} {batch} and replay frames {self._replay_batch}"
            raise TrainingError(f"{error} in the step on {where}") from None
        self._schedule.step()
        if self._average is not None:
            self._average.update_parameters(self.potential)

    def _shuffled_replay(self) -> Iterator[list[int]]:
        """Endless shuffled batches of replay structures."""
        assert self.replay.trained is not None
        count = len(self.replay.trained)
        size = min(self.config.replay_batch_size or self.config.batch_size, count)
        generator = torch.Generator().manual_seed(self.config.seed + 1)
        while True:
            order = torch.randperm(count, generator=generator).tolist()
            for first in range(0, count - size + 1, size):
                self._replay_batch = order[first : first + size]
                yield self._replay_batch

    @property
    def evaluated(self) -> Potential:
        """The potential that is judged and kept: the moving average where there is one."""
        return self.potential if self._average is None else cast("Potential", self._average.module)

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(self.task.size / self.task.batch_size)

    def _errors(self, potential: Potential) -> dict[str, Measured | None]:
        return {
            "valid": self.task.evaluate(potential),
            "replay": evaluate(potential, self.replay.watched, self.config.loss, processes=self.processes),
        }

    def _keep_if_best(self, epoch: int, errors: dict[str, Measured | None]) -> bool:
        score = self._score(errors)
        if epoch == 0 and score is not None and not math.isfinite(score):
            raise TrainingError(f"the loss of the untouched model on the validation or replay frames is {score}")
        # Without validation frames there is nothing to choose by: the last epoch is the result.
        if score is not None and not score < self._best_score:
            return False
        self._best_score = self._best_score if score is None else score
        self._best_epoch = epoch
        self.best_errors = errors
        source = self.evaluated if epoch else self.potential
        self._best_weights = {name: p.detach().clone() for name, p in source.native_parameters()}
        return True

    def _score(self, errors: dict[str, Measured | None]) -> float | None:
        """Validation loss plus, where forgetting is fought, the weighted rise of what replay measures."""
        valid, replay, before = errors["valid"], errors["replay"], self.initial["replay"]
        if valid is None:
            return None
        fights = self.config.uses_replay or self.config.uses_ewc
        if not fights or replay is None or before is None:
            return valid.loss
        return valid.loss + self.config.replay_weight * max(0.0, self.task.forgetting(replay, before))

    def _stops_early(self, epoch: int) -> bool:
        patience = self.config.early_stopping
        if patience is None or epoch - self._best_epoch < patience:
            return False
        self.log(f"stopped early: no better score for {patience} epochs")
        return True

    @torch.no_grad()
    def _load_best(self) -> None:
        for name, parameter in self.potential.native_parameters():
            parameter.copy_(self._best_weights[name])
