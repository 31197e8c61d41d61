"""The training loop: epochs of target and replay steps, validation, and the choice of the best weights."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ase_finetune.continual import EWCPenalty
from ase_finetune.errors import TrainingError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.history import Log, epoch_line, epoch_row, header_line
from ase_finetune.finetuning.optimizing import Updater, build_optimizer, build_schedule
from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.losses import LabelCounts, label_counts
from ase_finetune.metrics import Errors, ErrorSums, evaluate
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.batched import batches_by_edges


@dataclass(frozen=True)
class Sets:
    """Labelled graphs of a run; ``replay`` is trained on, ``monitor`` is held out from it.

    ``untouched`` are the errors of the potential on ``train`` before training, where they are known.
    """

    train: list[AtomGraph]
    valid: list[AtomGraph]
    replay: list[AtomGraph]
    monitor: list[AtomGraph]
    untouched: Errors | None = None


class Trainer:
    """Fine-tunes a potential in place and ends with the best weights it saw.

    Parameters
    ----------
    potential
        Its trainable parameters are changed.
    sets
        Labelled graphs in the potential's dtype.
    config
        The options.
    penalty
        EWC, or ``None``.
    log
        Where epochs are told.
    """

    def __init__(
        self, potential: Potential, sets: Sets, config: FinetuneConfig, penalty: EWCPenalty | None, log: Log
    ) -> None:
        self.potential = potential
        self.sets = sets
        self.config = config
        self.penalty = penalty
        self.log = log
        self.rows: list[dict[str, Any]] = []
        #: Called with the trainer after every epoch, for example to write files.
        self.on_epoch: Callable[[Trainer], None] | None = None
        self.initial: dict[str, Errors | None] = {}
        self._generator = torch.Generator().manual_seed(config.seed)
        parameters = [parameter for _, parameter in potential.native_parameters(trainable_only=True)]
        self._updater = Updater(build_optimizer(parameters, config), penalty, config.clip_norm)
        self._schedule = build_schedule(self._updater.optimizer, config, config.epochs * self._steps_per_epoch)
        self._average = None
        if config.ema_decay is not None:
            self._average = AveragedModel(potential, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        # Smaller pieces stay in the caches of a CPU; a GPU wants as much at once as fits.
        self._max_edges = config.max_edges or (2500 if potential.device.type == "cpu" else 100_000)
        self._replay = self._replay_batches()
        self._best_score, self._best_epoch = math.inf, 0
        #: Errors of the weights that are kept.
        self.best_errors: dict[str, Errors | None] = {}
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
        self.initial = {"train": self.sets.untouched, **self._errors(self.potential)}
        self._keep_if_best(0, self.initial)
        self.log(header_line())
        self.log(epoch_line(epoch_row(0, self.initial, learning_rate=0.0, penalty=0.0, seconds=0.0), best=True))
        try:
            for epoch in range(1, self.config.epochs + 1):
                self._epoch(epoch)
                if self._stops_early(epoch):
                    break
        finally:
            self._load_best()

    def _epoch(self, epoch: int) -> None:
        start = time.perf_counter()
        sums = ErrorSums(self.config.loss)
        rate = float(self._schedule.get_last_lr()[0])
        order = torch.randperm(len(self.sets.train), generator=self._generator).tolist()
        with self.log.bar(self._steps_per_epoch, f"epoch {epoch}") as bar:
            for first in range(0, len(order), self.config.batch_size):
                self._iteration(order[first : first + self.config.batch_size], sums)
                bar.update()
        errors = {"train": sums.errors(), **self._errors(self.evaluated)}
        best = self._keep_if_best(epoch, errors)
        penalty = self.penalty.value() if self.penalty is not None else 0.0
        seconds = time.perf_counter() - start
        self.rows.append(epoch_row(epoch, errors, learning_rate=rate, penalty=penalty, seconds=seconds, best=best))
        self.log(epoch_line(self.rows[-1], best))
        if self.on_epoch is not None:
            self.on_epoch(self)

    def _iteration(self, indices: list[int], sums: ErrorSums) -> None:
        """One target batch and, with replay, one replay batch."""
        replay = next(self._replay, None)
        target = self._pieces([self.sets.train[index] for index in indices], 1.0, sums)
        try:
            if replay is None:
                self._updater.update(target)
            else:
                old = self._pieces([self.sets.replay[index] for index in replay], self.config.replay_weight)
                if self.config.replay_schedule == "joint":
                    self._updater.update([*target, *old])
                else:
                    self._updater.update(target)
                    self._updater.update(old)
        except TrainingError as error:
            raise TrainingError(
                f"{error} in the step on training frames {indices} and replay frames {replay}"
            ) from None
        self._schedule.step()
        if self._average is not None:
            self._average.update_parameters(self.potential)

    def _pieces(
        self, graphs: list[AtomGraph], weight: float, sums: ErrorSums | None = None
    ) -> list[Callable[[], Tensor]]:
        """The weighted loss of a batch, cut into pieces that add up to it."""
        counts = label_counts(graphs)
        pieces = batches_by_edges(graphs, self._max_edges)
        return [
            functools.partial(self._loss, [graphs[index] for index in indices], counts, weight, sums)
            for indices in pieces
        ]

    def _loss(self, graphs: list[AtomGraph], counts: LabelCounts, weight: float, sums: ErrorSums | None) -> Tensor:
        batch = collate(graphs).to(self.potential.device)
        loss = self.config.loss
        prediction = self.potential.predict(
            batch, forces=loss.needs_forces, stress=loss.needs_stress, create_graph=True
        )
        if sums is not None:
            sums.add(prediction, batch)
        return weight * loss(prediction, batch, counts)

    def _replay_batches(self) -> Iterator[list[int]]:
        """Endless shuffled batches of replay structures; none without replay."""
        count = len(self.sets.replay)
        size = min(self.config.replay_batch_size or self.config.batch_size, count)
        generator = torch.Generator().manual_seed(self.config.seed + 1)
        while count:
            order = torch.randperm(count, generator=generator).tolist()
            for first in range(0, count - size + 1, size):
                yield order[first : first + size]

    @property
    def evaluated(self) -> Potential:
        """The potential that is judged and kept: the moving average where there is one."""
        return self.potential if self._average is None else cast("Potential", self._average.module)

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self.sets.train) / self.config.batch_size)

    def _errors(self, potential: Potential) -> dict[str, Errors | None]:
        return {
            "valid": evaluate(potential, self.sets.valid, self.config.loss),
            "replay": evaluate(potential, self.sets.monitor, self.config.loss),
        }

    def _keep_if_best(self, epoch: int, errors: dict[str, Errors | None]) -> bool:
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

    def _score(self, errors: dict[str, Errors | None]) -> float | None:
        """Validation loss plus, where forgetting is fought, the weighted rise of the replay loss."""
        valid, replay, before = errors["valid"], errors["replay"], self.initial["replay"]
        if valid is None:
            return None
        fights = self.config.uses_replay or self.config.uses_ewc
        if not fights or replay is None or before is None:
            return valid.loss
        return valid.loss + self.config.replay_weight * max(0.0, replay.loss - before.loss)

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
