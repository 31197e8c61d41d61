"""The task of relaxing to where the reference's relaxations end."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.data import PairSet
from ase_finetune.finetuning.history import RELAXATION_COLUMNS, Log
from ase_finetune.finetuning.relaxation_config import RelaxationConfig
from ase_finetune.finetuning.tasks import Measured, Task
from ase_finetune.graphs import neighbor_list
from ase_finetune.potentials.base import Potential
from ase_finetune.trajectories.evaluation import RelaxationErrors, evaluate_relaxations, summarize
from ase_finetune.trajectories.rollout import Rollout, rollout
from ase_finetune.trajectories.structures import Structures

#: Forgetting of so many meV/Å on replay forces weighs as much as the whole validation loss before training.
FORGETTING_SCALE = 100.0


@dataclass(frozen=True)
class RolloutErrors:
    """Where the rollouts of an epoch ended: mean loss, medians (Å, dimensionless), rollouts left out."""

    loss: float
    rmsd_median: float
    strain_median: float
    skipped: int

    def to_dict(self) -> dict[str, Any]:
        """Values by name."""
        return asdict(self)


class RelaxationTask(Task):
    """Pairs of initial and relaxed structures.

    Parameters
    ----------
    potential
        What is trained.
    train, valid
        Pairs; ``valid`` may be ``None``.
    config
        The options.
    energies
        Target energies of the training pairs in the potential's reference, eV; needed if the loss has
        an energy weight. NaN where there is none.
    log
        For progress bars.
    """

    name = "relaxations"
    columns = RELAXATION_COLUMNS

    def __init__(
        self,
        potential: Potential,
        train: PairSet,
        valid: PairSet | None,
        config: RelaxationConfig,
        log: Log,
        energies: Sequence[float] | None = None,
    ) -> None:
        self._potential, self._train, self._valid, self._config, self._log = potential, train, valid, config, log
        self._energies = energies
        self.size, self.epochs, self.batch_size = len(train), config.epochs, config.batch_size
        self.learning_rate, self.clip_norm = config.learning_rate, config.clip_norm
        self._cell = relaxes_cell(train, config)
        self._edges = [neighbor_list(pair.initial, potential.cutoff)[0].shape[1] for pair in train]
        self._log_step_size: nn.Parameter | None = None
        if config.train_step_size:
            method = config.method()
            start = torch.tensor(float(getattr(method, method.step_parameter)), dtype=torch.float64)
            self._log_step_size = nn.Parameter(start.log().to(potential.device))
        self._ends: list[tuple[float, float, float]] = []
        self._skipped: Counter[int] = Counter()
        self._reasons: dict[int, str] = {}
        self._scale = math.nan

    @property
    def step_size(self) -> float | None:
        """The trained step size, if it is trained."""
        return None if self._log_step_size is None else float(self._log_step_size.detach().exp())

    def own_parameters(self) -> list[tuple[nn.Parameter, float]]:
        if self._log_step_size is None:
            return []
        return [(self._log_step_size, self._config.step_size_learning_rate)]

    def begin_epoch(self) -> None:
        self._ends = []
        self._skipped.clear()
        self._reasons = {}

    def pieces(self, indices: Sequence[int]) -> list[Callable[[], Tensor]]:
        return [functools.partial(self._loss, piece, len(indices)) for piece in self._by_edges(indices)]

    def train_errors(self) -> RolloutErrors:
        skipped = sum(self._skipped.values())
        if not self._ends:
            return RolloutErrors(math.nan, math.nan, math.nan, skipped)
        losses, distances, strains = zip(*self._ends, strict=True)
        return RolloutErrors(sum(losses) / len(losses), median(distances), median(strains), skipped)

    def evaluate(self, potential: Potential) -> RelaxationErrors | None:
        if self._valid is None:
            return None
        calc = FinetunedCalculator(potential, device=str(potential.device), dtype=_name(potential.dtype))
        errors = summarize(
            evaluate_relaxations(
                calc,
                [pair.initial for pair in self._valid],
                [pair.relaxed for pair in self._valid],
                cell=self._cell,
                fmax=self._config.valid_fmax,
                steps=self._config.valid_steps,
                progress=None if self._log.verbose else False,
            )
        )
        if math.isnan(self._scale):
            self._scale = errors.loss
        return errors

    def forgetting(self, replay: Measured, before: Measured) -> float:
        """Rise of the replay force error, :data:`FORGETTING_SCALE` for the loss of the untouched potential.

        The loss of frames has other units than that of structures, so the two cannot be added.
        """
        rise: float = replay.to_dict()["forces_mae"] - before.to_dict()["forces_mae"]
        return self._scale * rise / FORGETTING_SCALE

    def notes(self) -> list[str]:
        notes = []
        if self._skipped:
            index, reason = next(iter(self._reasons.items()))
            notes.append(
                f"{sum(self._skipped.values())} rollouts were left out, for example "
                f"{self._train.describe(index)}: {reason}"
            )
        if self.step_size is not None:
            notes.append(f"the step size is {self.step_size:.4g}")
        return notes

    def _by_edges(self, indices: Sequence[int]) -> list[list[int]]:
        bound = self._config.max_edges or (4000 if self._potential.device.type == "cpu" else 50_000)
        pieces: list[list[int]] = []
        filled = 0
        for index in sorted(indices, key=lambda k: -self._edges[k]):
            if not pieces or filled + self._edges[index] > bound:
                pieces.append([])
                filled = 0
            pieces[-1].append(index)
            filled += self._edges[index]
        return pieces

    def _loss(self, indices: list[int], batch_size: int) -> Tensor:
        """The part of the batch's loss that these structures contribute; those that explode contribute none."""
        config = self._config
        run = rollout(
            [self._train[index].initial for index in indices],
            self._potential,
            config.method(None if self._log_step_size is None else self._log_step_size.exp()),
            steps=config.steps,
            gradient=config.gradient_options(),
            cell=self._cell,
            fmax=config.fmax,
        )
        for position, reason in run.failed.items():
            self._skip(indices[position], reason)
        if run.structures is None:
            return torch.zeros((), dtype=torch.float64, device=self._potential.device)
        kept = [indices[position] for position in run.kept]
        target = Structures.from_atoms([self._train[k].relaxed for k in kept], device=self._potential.device)
        total = self._distances(run, run.structures, target, kept)
        if run.guide is not None:
            total = total + config.loss(run.guide, target).sum() if not config.loss.energy else total
        return config.weight * total / batch_size

    def _distances(self, run: Rollout, structures: Structures, target: Structures, kept: list[int]) -> Tensor:
        loss = self._config.loss
        energies: dict[str, Tensor] = {}
        if loss.energy > 0:
            assert self._energies is not None
            wanted = torch.tensor([self._energies[k] for k in kept], dtype=torch.float64, device=target.cell.device)
            energies = {"energy": run.energy(), "target_energy": wanted}
        values = loss(structures, target, **energies)
        with torch.no_grad():
            terms = loss.terms(structures, target)
            self._ends += zip(values.tolist(), terms["rmsd"].tolist(), terms["strain"].tolist(), strict=True)
        return values.sum()

    def _skip(self, index: int, reason: str) -> None:
        self._skipped[index] += 1
        self._reasons.setdefault(index, reason)


def relaxes_cell(pairs: PairSet, config: RelaxationConfig) -> bool:
    """Whether the cells relax: as the config says, or else if one differs in the pairs."""
    if config.cell is not None:
        return config.cell
    return any(abs(pair.initial.cell[:] - pair.relaxed.cell[:]).max() > 1e-6 for pair in pairs)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
