"""Optimizer, learning-rate schedule, freezing, and the one update all methods are made of."""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ase_finetune.continual import EWCPenalty
from ase_finetune.errors import InputError, TrainingError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.memory import EdgeBudget, halve_if_out_of_memory


def freeze_parameters(potential: Potential, patterns: Sequence[str]) -> list[str]:
    """Stop the parameters whose native names match any of the patterns from training.

    Returns
    -------
    Names of the parameters that trained before and were frozen here.

    Raises
    ------
    InputError
        If a pattern matches no parameter, or nothing is left to train.
    """
    named = dict(potential.native_parameters())
    frozen: dict[str, None] = {}
    for pattern in patterns:
        matches = fnmatch.filter(named, pattern)
        if not matches:
            raise InputError(f"freeze pattern {pattern!r} matches no parameter; names look like {next(iter(named))!r}")
        frozen.update(dict.fromkeys(matches))
    stopped = [name for name in frozen if named[name].requires_grad]
    for name in stopped:
        named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise InputError("every parameter is frozen: there is nothing to train")
    return stopped


def unfreeze_parameters(potential: Potential, names: Sequence[str]) -> None:
    """Let the parameters that :func:`freeze_parameters` stopped train again, in whatever comes next."""
    named = dict(potential.native_parameters())
    for name in names:
        named[name].requires_grad_()


def parameter_table(potential: Potential) -> str:
    """How many parameters of each part of the model are trained and how many are frozen."""
    counts: dict[str, list[int]] = {}
    for name, parameter in potential.native_parameters():
        row = counts.setdefault(name.split(".")[0], [0, 0])
        row[0 if parameter.requires_grad else 1] += parameter.numel()
    lines = [f"  {'part of the model':32s}{'trained':>12s}{'frozen':>10s}"]
    lines += [f"  {part:32s}{trained:12,d}{frozen:10,d}" for part, (trained, frozen) in counts.items()]
    trained, frozen = (sum(row[column] for row in counts.values()) for column in (0, 1))
    return "\n".join([*lines, f"  {'all':32s}{trained:12,d}{frozen:10,d}"])


def build_optimizer(
    parameters: list[nn.Parameter], learning_rate: float, config: FinetuneConfig
) -> torch.optim.Optimizer:
    """Adam or AdamW as the config says."""
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=learning_rate, weight_decay=config.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, config: FinetuneConfig, steps: int) -> LambdaLR:
    """Linear warm-up, then cosine annealing to zero or a constant rate.

    Parameters
    ----------
    optimizer
        Holds the peak rate.
    config
        ``warmup`` and ``schedule``.
    steps
        Iterations of the whole run.
    """
    warm = round(config.warmup * steps)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        if config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return LambdaLR(optimizer, factor)


class PieceLoss(NamedTuple):
    """What some examples contribute to the loss of their batch, and what to note once its gradient is known.

    ``keep`` does its work or fails without a trace.
    """

    value: Tensor
    keep: Callable[[], object]


@dataclass(frozen=True)
class Piece:
    """A part of a batch that is worked on at once, and can be halved.

    Attributes
    ----------
    examples
        Numbers of the examples, whatever ``loss`` and ``edges`` take them for.
    edges
        How many edges each of them has.
    loss
        Of some of them. Must leave no trace: that is for ``keep`` of its result.
    budget
        Bound of the pieces of batches to come.
    """

    examples: list[int]
    edges: Mapping[int, int]
    loss: Callable[[list[int]], PieceLoss]
    budget: EdgeBudget


class Updater:
    """One optimizer step on a loss, with the EWC penalty and gradient clipping.

    Every method is made of such updates: ``alternate`` makes two, each with its own gradient, and
    the penalty acts on both; ``joint`` makes one on the sum of two losses.

    Parameters
    ----------
    optimizer
        Of the trainable parameters.
    penalty
        EWC, or ``None``.
    clip_norm
        Largest norm of the gradient, or ``None``.
    processes
        Share each batch: the gradients of their pieces are summed.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        penalty: EWCPenalty | None = None,
        clip_norm: float | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.optimizer = optimizer
        self.penalty = penalty
        self.clip_norm = clip_norm
        self.processes = processes
        self._parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]

    def update(self, pieces: Iterable[Piece]) -> float:
        """Make one step on the sum of the pieces of a loss; returns it without the penalty.

        Each piece is evaluated and its gradient added before the next one, so that memory is that of
        the largest piece. A piece that does not fit into memory is halved, to the same effect.

        Raises
        ------
        TrainingError
            If the loss or its gradient is not finite; the parameters are left as they were.
        ProcessError
            If another process could not evaluate its share.
        """
        self.optimizer.zero_grad(set_to_none=True)
        value = self._sum(self.processes.together(lambda: self._differentiate(pieces)))
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value}")
        if self.penalty is not None:
            self.penalty.add_gradient()
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self.clip_norm or math.inf))
        if not math.isfinite(norm):
            raise TrainingError(f"the norm of the gradient is {norm}")
        self.optimizer.step()
        return value

    def _differentiate(self, pieces: Iterable[Piece]) -> float:
        """Add the gradients of the pieces to those of the parameters; returns the loss."""
        # Added up where they are: each number read from a GPU would make the program wait for it.
        values: list[Tensor] = []

        def work(examples: list[int], piece: Piece) -> None:
            # All or nothing, unlike backward(): memory may run out anywhere, and what is counted is counted once.
            value, keep = piece.loss(examples)
            gradients: list[Tensor | None] = [None] * len(self._parameters)
            if value.requires_grad:  # not if every example of a piece had to be left out
                found = torch.autograd.grad(value, self._parameters, allow_unused=True)
                # Autograd may hand out one tensor twice, or an expanded one; these are added to in place.
                gradients = [None if g is None else g.clone(memory_format=torch.contiguous_format) for g in found]
            contribution = value.detach().double()
            keep()
            values.append(contribution)
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient
                elif gradient is not None:
                    parameter.grad.add_(gradient)

        def lower(failed: list[int], piece: Piece) -> None:
            piece.budget.lower(sum(piece.edges[example] for example in failed))

        for piece in pieces:
            doing, failing = functools.partial(work, piece=piece), functools.partial(lower, piece=piece)
            halve_if_out_of_memory(doing, piece.examples, failing)
        return float(torch.stack(values).sum()) if values else 0.0

    def _sum(self, value: float) -> float:
        """Loss and gradients over all processes; a parameter that none of them used keeps no gradient."""
        if self.processes.size == 1:
            return value
        used = [0.0 if parameter.grad is None else 1.0 for parameter in self._parameters]
        value, *used = self.processes.total([value, *used])
        if not math.isfinite(value):
            return value
        wanted = [parameter for parameter, count in zip(self._parameters, used, strict=True) if count]
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.processes.sum_([parameter.grad for parameter in wanted if parameter.grad is not None])
        return value
