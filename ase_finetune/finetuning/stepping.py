"""Iterations of a training: optimizer, learning-rate schedule, and the moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ase_finetune.continual import EWCPenalty
from ase_finetune.errors import NotFiniteError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.optimizing import build_optimizer, build_schedule
from ase_finetune.finetuning.state import State, copy_into, load_optimizer_state, optimizer_state
from ase_finetune.finetuning.tasks import Task
from ase_finetune.finetuning.updating import Piece, Updater
from ase_finetune.parallel import Processes
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.warming import warm_up


class Stepper:
    """Changes the weights of a potential.

    Parameters
    ----------
    potential
        Its trainable parameters are changed.
    task
        Its own parameters are trained, too.
    config
        The options.
    penalty
        EWC, or ``None``.
    iterations
        Of the whole training: the schedule ends with them.
    processes
        Share the work; all make the same steps.
    """

    def __init__(
        self,
        potential: Potential,
        task: Task,
        config: FinetuneConfig,
        penalty: EWCPenalty | None,
        iterations: int,
        processes: Processes,
    ) -> None:
        self._potential = potential
        self._task = task
        self._joint = config.replay_schedule == "joint"
        parameters = [parameter for _, parameter in potential.native_parameters(trainable_only=True)]
        optimizer = build_optimizer(parameters, task.learning_rate, config)
        for parameter, rate in task.own_parameters():
            optimizer.add_param_group({"params": [parameter], "lr": rate, "weight_decay": 0.0})
        self._updater = Updater(optimizer, penalty, task.clip_norm, processes)
        self._schedule = build_schedule(optimizer, config, iterations)
        self._average: _MovingAverage | None = None
        if config.ema_decay is not None:
            self._average = _MovingAverage(potential, config.ema_decay)
            warm_up(self.evaluated)

    @property
    def learning_rate(self) -> float:
        """Of the next iteration."""
        return float(self._schedule.get_last_lr()[0])

    @property
    def evaluated(self) -> Potential:
        """The potential that is judged and kept: the moving average where there is one."""
        return self._potential if self._average is None else self._average.potential

    def iterate(self, target: list[Piece], replay: list[Piece] | None) -> list[NotFiniteError]:
        """One target batch and, with replay, one replay batch; returns why updates could not be made."""
        updates = [target]
        if replay is not None:
            updates = [[*target, *replay]] if self._joint else [target, replay]
        failures = [failure for failure in map(self._update, updates) if failure is not None]
        self._schedule.step()
        if self._average is not None:
            self._average.update(self._potential)
        return failures

    def _update(self, pieces: list[Piece]) -> NotFiniteError | None:
        """Make a step, or say why it cannot be made."""
        try:
            self._updater.update(pieces)
        except NotFiniteError as error:
            return error
        return None

    def add_to(self, state: State) -> None:
        """Weights and all that further iterations depend on."""
        state.add("weights", self._potential.native_parameters())
        state.add("own", self._own())
        tensors, rates = optimizer_state(self._updater.optimizer)
        state.add("optimizer", tensors.items())
        if self._average is not None:
            state.add("average", self.evaluated.native_parameters())
            state.values["averaged"] = self._average.count
        state.values |= {"rates": rates, "schedule": self._schedule.state_dict()}

    def load_from(self, state: State) -> None:
        """Go on from what :meth:`add_to` gave.

        Raises
        ------
        CheckpointError
            If it is of another model.
        """
        copy_into(self._potential.native_parameters(), state.group("weights"))
        copy_into(self._own(), state.group("own"))
        load_optimizer_state(self._updater.optimizer, state.group("optimizer"), state.values["rates"])
        self._schedule.load_state_dict(dict(state.values["schedule"]))
        if self._average is not None:
            copy_into(self.evaluated.native_parameters(), state.group("average"))
            self._average.count = int(state.values["averaged"])

    def _own(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters of the task by the names they have in a state."""
        return [(str(number), parameter) for number, (parameter, _) in enumerate(self._task.own_parameters())]


class _MovingAverage:
    """A copy of a potential whose weights are the exponential moving average of the other's.

    As ``AveragedModel`` of ``torch.optim.swa_utils`` with the same average, but for its count, which that copies to the
    device in every step and waits for.

    Parameters
    ----------
    potential
        Is copied.
    decay
        Share of the average that stays in each update.
    """

    def __init__(self, potential: Potential, decay: float) -> None:
        self.potential = copy.deepcopy(potential)
        self.count = 0
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, potential: Potential) -> None:
        """Take in the weights as they are now; the first ones are taken over. Buffers are copied."""
        averages: list[Tensor] = list(self.potential.parameters())
        values: list[Tensor] = list(potential.parameters())
        if self.count == 0:
            torch._foreach_copy_(averages, values)
        else:
            self._average(averages, values, self.count)
        for own, other in zip(self.potential.buffers(), potential.buffers(), strict=True):
            own.copy_(other)
        self.count += 1
