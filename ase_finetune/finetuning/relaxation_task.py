"""The task of relaxing to where the reference's relaxations end."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from ase import Atoms
from torch import Tensor, nn

from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.data import Pair, PairSet
from ase_finetune.finetuning.history import RELAXATION_COLUMNS, Log
from ase_finetune.finetuning.relaxation_config import RelaxationConfig
from ase_finetune.finetuning.tasks import Measured, Task
from ase_finetune.graphs import neighbor_list
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.batched import fill_batches
from ase_finetune.trajectories.evaluation import RelaxationErrors, evaluate_relaxations, summarize
from ase_finetune.trajectories.rollout import Rollout, rollout
from ase_finetune.trajectories.structures import Structures

#: Force error in meV/Å of universal potentials on structures like those they were trained on. A deviation from
#: labels that the pretrained model made itself is judged beside it.
TYPICAL_FORCE_ERROR = 40.0


# Errors below (meV/Å) are rounding: the labels are the model's own.
_OWN_LABELS = 0.1


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
        # Each example is a start and the pair it belongs to.
        self._starts = [start for ends in _STARTS[config.start] for start in map(ends, train)]
        self._pair_of = [index % len(train) for index in range(len(self._starts))]
        self.size, self.epochs, self.batch_size = len(self._starts), config.epochs, config.batch_size
        self.learning_rate, self.clip_norm = config.learning_rate, config.clip_norm
        self._cell = relaxes_cell(train, config)
        self._edges = [neighbor_list(atoms, potential.cutoff)[0].shape[1] for atoms in self._starts]
        self._log_step_size: nn.Parameter | None = None
        if config.train_step_size:
            method = config.method()
            start = torch.tensor(float(getattr(method, method.step_parameter)), dtype=torch.float64)
            self._log_step_size = nn.Parameter(start.log().to(potential.device))
        self._ends: list[tuple[float, float, float]] = []
        self._skipped: Counter[int] = Counter()
        self._reasons: dict[int, str] = {}
        self._unsolved: list[tuple[list[int], dict[int, str]]] = []
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
        self._unsolved = []

    def pieces(self, indices: Sequence[int]) -> list[Callable[[], Tensor]]:
        bound = self._config.max_edges or (4000 if self._potential.device.type == "cpu" else 50_000)
        pieces = fill_batches([self._edges[index] for index in indices], bound)
        return [
            functools.partial(self._loss, [indices[position] for position in piece], len(indices)) for piece in pieces
        ]

    def train_errors(self) -> RolloutErrors:
        for indices, failures in self._unsolved:
            for position, reason in failures.items():
                self._skip(indices[position], reason)
        self._unsolved.clear()
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
        """The relative rise of the replay force error, for the validation loss of the untouched potential.

        The loss of frames has other units than that of structures, so the two cannot be added. A deviation
        from labels of the pretrained model adds to the error it had, :data:`TYPICAL_FORCE_ERROR`, in quadrature.
        """
        old, new = (measured.to_dict()["forces_mae"] for measured in (before, replay))
        if old < _OWN_LABELS:
            old, new = TYPICAL_FORCE_ERROR, math.hypot(TYPICAL_FORCE_ERROR, new)
        rise: float = new / old - 1
        return self._scale * rise

    def notes(self) -> list[str]:
        notes = []
        if self._skipped:
            index, reason = next(iter(self._reasons.items()))
            notes.append(
                f"{sum(self._skipped.values())} rollouts were left out, for example "
                f"{self._train.describe(self._pair_of[index])}: {reason}"
            )
        if self.step_size is not None:
            notes.append(f"the step size is {self.step_size:.4g}")
        return notes

    def _loss(self, indices: list[int], batch_size: int) -> Tensor:
        """The part of the batch's loss that these structures contribute; those that explode contribute none."""
        config = self._config
        run = rollout(
            [self._starts[index] for index in indices],
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
        kept = [self._pair_of[indices[position]] for position in run.kept]
        target = Structures.from_atoms([self._train[k].relaxed for k in kept], device=self._potential.device)
        # Filled in the backward pass, if equations cannot be solved.
        self._unsolved.append(([indices[position] for position in run.kept], run.solver_failures))
        values = self._distances(run, run.structures, target, kept)
        if run.guide is not None and any(weight for name, weight in config.loss.weights.items() if name != "energy"):
            values = values + dataclasses.replace(config.loss, energy=0.0)(run.guide, target)
        if config.robust is not None:
            values = config.robust * torch.log1p(values / config.robust)
        return config.weight * values.sum() / batch_size

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
        return values

    def _skip(self, index: int, reason: str) -> None:
        self._skipped[index] += 1
        self._reasons.setdefault(index, reason)


def _at_the_target(pair: Pair) -> Atoms:
    """The relaxed structure as a start, held by the same constraints."""
    atoms = pair.relaxed.copy()
    atoms.set_constraint(pair.initial.copy().constraints)
    return atoms


def _at_the_beginning(pair: Pair) -> Atoms:
    return pair.initial


_STARTS: dict[str, tuple[Callable[[Pair], Atoms], ...]] = {
    "initial": (_at_the_beginning,),
    "relaxed": (_at_the_target,),
    "both": (_at_the_beginning, _at_the_target),
}


def relaxes_cell(pairs: PairSet, config: RelaxationConfig) -> bool:
    """Whether the cells relax: as the config says, or else if one differs in the pairs."""
    if config.cell is not None:
        return config.cell
    return any(abs(pair.initial.cell[:] - pair.relaxed.cell[:]).max() > 1e-6 for pair in pairs)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
