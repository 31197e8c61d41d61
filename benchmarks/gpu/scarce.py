"""Evaluation and gradient in a process that may only use a part of the memory. Started by right_runs.py."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any

import torch

from ase_finetune.finetuning.frame_task import FrameBatches
from ase_finetune.finetuning.updating import Updater
from ase_finetune.graphs import AtomGraph, edge_counts
from ase_finetune.losses import Loss
from ase_finetune.potentials import Potential
from ase_finetune.potentials.batched import predict_many
from ase_finetune.potentials.memory import EdgeBudget
from benchmarks.gpu.models import crystal, graphs, labelled, potential, relative
from benchmarks.workers import MIB, Peak, answer, resident

#: The part of the structures that the memory is made to be enough for, and how much more there is than they need.
ENOUGH, MORE = 0.25, 1.25


def forces(model: Potential, made: Sequence[AtomGraph], max_edges: int) -> torch.Tensor:
    """Of all structures, on the CPU."""
    found = predict_many(model, made, max_edges=max_edges)
    return torch.cat([prediction.forces for prediction in found if prediction.forces is not None])


def gradient(model: Potential, made: Sequence[AtomGraph], budget: EdgeBudget) -> torch.Tensor:
    """Of the loss of one batch, as a training step takes it."""
    named = [parameter for _, parameter in model.native_parameters(trainable_only=True)]
    updater = Updater(torch.optim.SGD(named, lr=0.0))
    for pieces in FrameBatches(model, made, Loss(), budget).pieces([range(len(made))]):
        updater.update(pieces)
    return torch.cat([p.grad.double().flatten() for p in named if p.grad is not None]).cpu()


def restrict(device: torch.device, more: float) -> None:
    """Allow this process so many bytes more than it has now."""
    if device.type != "cuda":
        limit = resident("VmSize") + int(more)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved(device) + more) / total))


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Compare one structure at a time with all at once, for which memory is not enough."""
    torch.set_num_threads(task["threads"])
    device = torch.device(task["device"])
    model = potential(task["model"], device)
    frames = labelled(model, [crystal(task["atoms"])] * task["count"])
    made = graphs(model, frames)
    one = max(edge_counts(made))
    gradient(model, made[:1], EdgeBudget(one))  # what the first evaluation needs is no part of it
    peak = Peak(device)
    gradient(model, made[: round(ENOUGH * len(made))], EdgeBudget(10**9))
    enough = peak.read()
    wanted = forces(model, made, one), gradient(model, made, EdgeBudget(one))
    restrict(device, MORE * enough)
    budget = EdgeBudget(10**9)
    found = forces(model, made, 10**9), gradient(model, made, budget)
    return {
        "forces": relative(found[0], wanted[0]),
        "gradient": relative(found[1], wanted[1]),
        "halved": budget.edges < 10**9,
        "pieces": budget.edges,
        "whole": sum(edge_counts(made)),
        "allowed_mib": MORE * enough / MIB,
    }


if __name__ == "__main__":
    answer(measure)
