"""Optimizer, learning-rate schedule and freezing."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ase_finetune.errors import InputError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.potentials.base import Potential


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


def parameter_summary(potential: Potential) -> str:
    """How many parameters are trained, and where the frozen ones are, in a line."""
    named = list(potential.native_parameters())
    trained = sum(parameter.numel() for _, parameter in named if parameter.requires_grad)
    parts = dict.fromkeys(name.split(".")[0] for name, parameter in named if not parameter.requires_grad)
    frozen = sum(parameter.numel() for _, parameter in named) - trained
    where = f" ({', '.join(list(parts)[:6])}{', ...' if len(parts) > 6 else ''})" if parts else ""
    return f"parameters: {trained:,d} trained, {frozen:,d} frozen{where}"


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
