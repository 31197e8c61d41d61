"""The task of relaxing to where the reference's relaxations end."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor, nn

from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.data import Pair, PairSet
from ase_finetune.finetuning.history import RELAXATION_COLUMNS, Log
from ase_finetune.finetuning.relaxation_config import RelaxationConfig
from ase_finetune.finetuning.tasks import RolloutErrors, Task
from ase_finetune.finetuning.updating import Piece, PieceLoss
from ase_finetune.graphs import neighbor_list
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.batched import fill_batches
from ase_finetune.potentials.memory import EdgeBudget
from ase_finetune.trajectories.evaluation import PairError, RelaxationErrors, relax_pairs, summarize
from ase_finetune.trajectories.losses import cell_strain, rmsd
from ase_finetune.trajectories.rollout import Rollout, rollout
from ase_finetune.trajectories.structures import Structures


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
        For progress bars and notes.
    processes
        Share each batch and the validation.
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
        processes: Processes = ALONE,
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
        self._processes = processes
        self._budget = EdgeBudget(config.max_edges or (4000 if potential.device.type == "cpu" else 50_000), log)
        self._ends: list[tuple[float, float, float]] = []
        #: Examples that were left out this epoch, and why.
        self._skipped: dict[int, str] = {}

    @property
    def valid(self) -> PairSet | None:
        """The held-out pairs."""
        return self._valid

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
        self._skipped = {}

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[list[Piece]]:
        return map(self._pieces, order)

    def state(self) -> dict[str, Any]:
        return {
            "ends": self._ends,
            "skipped": list(self._skipped.items()),  # JSON's keys are texts
            "edges": self._budget.edges,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._ends += [(loss, distance, strain) for loss, distance, strain in state["ends"]]
        self._skipped |= {int(index): reason for index, reason in state["skipped"]}
        self._budget.edges = int(state["edges"])

    def train_errors(self) -> RolloutErrors:
        ends = [end for part in self._processes.gather(self._ends) for end in part]
        self._skipped = {k: v for part in self._processes.gather(self._skipped) for k, v in part.items()}
        if not ends:
            return RolloutErrors(math.nan, math.nan, math.nan, len(self._skipped))
        losses, distances, strains = zip(*ends, strict=True)
        return RolloutErrors(sum(losses) / len(losses), median(distances), median(strains), len(self._skipped))

    def evaluate(self, potential: Potential) -> RelaxationErrors | None:
        if self._valid is None:
            return None
        return summarize([error for error, _ in self.relax(potential, self._valid)])

    def relax(self, potential: Potential, pairs: PairSet) -> list[tuple[PairError, Atoms]]:
        """How the relaxations of pairs end, as validation judges it, and where. All processes take part."""
        calc = FinetunedCalculator(potential, device=str(potential.device), dtype=_name(potential.dtype))
        return relax_pairs(
            calc,
            [pair.initial for pair in pairs],
            [pair.relaxed for pair in pairs],
            cell=self._cell,
            fmax=self._config.valid_fmax,
            steps=self._config.valid_steps,
            progress=None if self._log.verbose else False,
            processes=self._processes,
        )

    def gradient_norms(self, most: int) -> NDArray[np.float64]:
        """(s, k) norms of the loss's gradient by the coordinates before each step, in up to ``most`` rollouts.

        NaN where it was not computed. It shows whether gradients vanish or explode on their way back.
        """
        chosen = np.linspace(0, self.size - 1, min(most, self.size)).round().astype(int).tolist()
        rows = []
        for index in chosen:
            run = self._rollout([index])
            if run.structures is not None and run.path is not None:
                self._target_loss(run, run.structures, [self._pair_of[index]])[0].sum().backward()
                rows.append(run.path.gradient_norms)
        self._potential.zero_grad(set_to_none=True)
        norms = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
        for row, values in zip(norms, rows, strict=True):
            row[: len(values)] = values
        return norms

    def notes(self) -> list[str]:
        notes = []
        if self._skipped:
            index, reason = next(iter(self._skipped.items()))
            notes.append(f"{len(self._skipped)} rollouts were left out, for example {self._describe(index)}: {reason}")
        if self.step_size is not None:
            notes.append(f"the step size is {self.step_size:.4g}")
        return notes

    def _pieces(self, batch: Sequence[int]) -> list[Piece]:
        own = [batch[k] for k in self._processes.share([self._edges[index] for index in batch])]
        pieces = fill_batches([self._edges[index] for index in own], self._budget.edges)
        loss = functools.partial(self._piece_loss, len(batch))
        edges = {index: self._edges[index] for index in own}
        return [Piece([own[k] for k in piece], edges, loss, self._budget, self._describe) for piece in pieces]

    def _describe(self, index: int) -> str:
        return self._train.describe(self._pair_of[index])

    def _piece_loss(self, batch_size: int, indices: list[int]) -> PieceLoss:
        """The part of the batch's loss that these structures contribute; those that explode contribute none."""
        config, run = self._config, self._rollout(indices)
        kept = [indices[position] for position in run.kept]
        # Not the rollout itself, which holds its graph. The backward pass adds to what could not be solved.
        keep = functools.partial(
            self._keep, failed=run.failed, unsolved=run.solver_failures, indices=indices, kept=kept
        )
        if run.structures is None:
            nothing = torch.zeros((), dtype=torch.float64, device=self._potential.device)
            return PieceLoss(nothing, functools.partial(keep, []))
        values, ends = self._target_loss(run, run.structures, [self._pair_of[index] for index in kept])
        if config.robust is not None:
            values = config.robust * torch.log1p(values / config.robust)
        total = config.weight * values.sum() / batch_size
        return PieceLoss(total, functools.partial(keep, ends))

    def _rollout(self, indices: list[int]) -> Rollout:
        config = self._config
        return rollout(
            [self._starts[index] for index in indices],
            self._potential,
            config.method(None if self._log_step_size is None else self._log_step_size.exp()),
            steps=config.steps,
            gradient=config.gradient_options(),
            cell=self._cell,
            fmax=config.fmax,
        )

    def _target_loss(
        self, run: Rollout, structures: Structures, pairs: list[int]
    ) -> tuple[Tensor, list[tuple[float, float, float]]]:
        """As :meth:`_distances`, with what guides the first steps of ``"guided"``."""
        config = self._config
        target = Structures.from_atoms([self._train[k].relaxed for k in pairs], device=self._potential.device)
        values, ends = self._distances(run, structures, target, pairs)
        if run.guide is not None and any(weight for name, weight in config.loss.weights.items() if name != "energy"):
            values = values + dataclasses.replace(config.loss, energy=0.0)(run.guide, target)
        return values, ends

    def _keep(
        self,
        ends: list[tuple[float, float, float]],
        failed: Mapping[int, str],
        unsolved: Mapping[int, str],
        indices: list[int],
        kept: list[int],
    ) -> None:
        """Note where rollouts ended and which were left out; some fail in the backward pass only."""
        self._ends += ends
        for position, reason in failed.items():
            self._skipped.setdefault(indices[position], reason)
        for position, reason in unsolved.items():
            self._skipped.setdefault(kept[position], reason)

    def _distances(
        self, run: Rollout, structures: Structures, target: Structures, pairs: list[int]
    ) -> tuple[Tensor, list[tuple[float, float, float]]]:
        """Loss of each structure, and for the history loss, RMSD and strain."""
        loss = self._config.loss
        energies: dict[str, Tensor] = {}
        if loss.energy > 0:
            assert self._energies is not None
            wanted = torch.tensor([self._energies[k] for k in pairs], dtype=torch.float64, device=target.cell.device)
            energies = {"energy": run.energy(), "target_energy": wanted}
        values = loss(structures, target, **energies)
        with torch.no_grad():
            distances = rmsd(structures, target, remove_drift=loss.remove_drift, align=loss.align)
            # Read at once: a GPU is waited for each time.
            rows = torch.stack([values, distances, cell_strain(structures, target)], dim=1).tolist()
        return values, [(value, distance, strain) for value, distance, strain in rows]


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
