"""Peak memory of training steps and of gradients through relaxations, and the largest structure that fits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ase_finetune import FinetunedCalculator
from ase_finetune.finetuning.frame_task import FrameBatches
from ase_finetune.finetuning.updating import Updater
from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.losses import Loss
from ase_finetune.optimize import FIREStep
from ase_finetune.potentials import Potential
from ase_finetune.potentials.memory import EdgeBudget, is_out_of_memory
from benchmarks import bptt as unrolling
from benchmarks.gpu.fast_training import target
from benchmarks.gpu.models import accelerations, graphs, shared
from benchmarks.gpu.stage import Bench, Task
from benchmarks.inputs import frames, silicon
from benchmarks.paired import seconds
from benchmarks.workers import MIB, Peak


def tasks(bench: Bench) -> Iterator[Task]:
    """Training first, then relaxations, then what fits."""
    models = bench.size(("7net-0",), ("7net-0",), ("7net-0", "mace"))
    for model in models:
        for size in bench.size((1,), (2,), (1, 8, 32)):
            yield f"training step {model}, {size} frames", functools.partial(_training, bench, model, size)
    for steps in bench.size((2, 4), (10, 50), (10, 50, 200)):
        yield f"BPTT adjoint, {steps} steps", functools.partial(_bptt, bench, "adjoint", steps)
    for steps in bench.size((2, 4), (10,), (10, 50)):
        yield f"BPTT unrolled, {steps} steps", functools.partial(_bptt, bench, "unrolled", steps)
    for model in models:
        for what in ("evaluation", "loss and its gradient"):
            for suffix, options in accelerations(bench.on_gpu).items() if what == "evaluation" else [("", {})]:
                name = f"largest structure, {model}, {what}{suffix}"
                yield name, functools.partial(_largest, bench, model, what, options)


def _training(bench: Bench, model: str, size: int) -> dict[str, Any]:
    """Above weights and optimizer, with the whole batch at once."""
    made = shared(model, bench.device)
    batch = graphs(made, frames(target(bench), size))
    parameters = [parameter for _, parameter in made.native_parameters(trainable_only=True)]
    updater = Updater(torch.optim.Adam(parameters, lr=0.0))

    def step() -> None:
        for pieces in FrameBatches(made, batch, Loss(), EdgeBudget(10**9)).pieces([range(size)]):
            updater.update(pieces)

    step()
    peak = Peak(bench.device)
    taken, edges = seconds(step), sum(graph.num_edges for graph in batch)
    value = peak.read() / MIB
    short = f"{value * 1024 / edges:.0f} KiB an edge"
    return {"value": value, "unit": "MiB", "edges": edges, "step_seconds": taken, "short": short}


def _bptt(bench: Bench, kind: str, steps: int) -> dict[str, Any]:
    """Above the weights."""
    made = shared("7net-0", bench.device)
    starts, targets = unrolling.pairs(bench.size(1, 2, 20))
    method = FIREStep()

    def work(steps: int) -> None:
        if kind == "adjoint":
            unrolling.gradient(made, starts, targets, {"steps": steps, "gradient": kind}, method)
        else:
            unrolling.plain_autograd(made, starts, targets, steps, method)

    work(2)
    peak = Peak(bench.device)
    taken = seconds(lambda: work(steps))
    return {"value": peak.read() / MIB, "unit": "MiB", "structures": len(starts), "short": f"{taken:.2f} s"}


def _largest(bench: Bench, model: str, what: str, options: dict[str, Any]) -> dict[str, Any]:
    """Silicon, doubled until memory runs out, time is over, or the limit of a CPU is reached."""
    made, found, reason = shared(model, bench.device), dict[str, float](), "the largest that was tried"
    cells, limit = [2, 2, 2], bench.size(128, 512, 10**7)
    while 8 * cells[0] * cells[1] * cells[2] <= limit:
        atoms = silicon(*cells)
        try:
            found[str(len(atoms))] = seconds(_work(made, atoms, what, options))
        except (MemoryError, RuntimeError) as error:
            reason = "twice as many do not fit" if is_out_of_memory(error) else f"{len(atoms)} atoms: {error}"[:200]
            break
        torch.cuda.empty_cache()
        if bench.left < 3 * found[str(len(atoms))]:
            reason = "the time of the stage was over"
            break
        cells[cells.index(min(cells))] *= 2
    largest = max(map(int, found), default=0)
    return {"value": largest, "unit": "atoms", "seconds_by_atoms": found, "short": reason}


def _work(model: Potential, atoms: Any, what: str, options: dict[str, Any]) -> Callable[[], object]:
    if what == "evaluation":
        calculator = FinetunedCalculator(model, device=str(model.device), **options)
        return functools.partial(calculator.calculate, atoms, ["energy", "forces", "stress"])
    graph = collate([AtomGraph.from_atoms(atoms, model.cutoff)])
    parameters = [parameter for _, parameter in model.native_parameters(trainable_only=True)]

    def work() -> None:
        prediction = model.predict(graph.to(model.device), create_graph=True)
        assert prediction.forces is not None
        torch.autograd.grad(prediction.forces.square().mean(), parameters, allow_unused=True)

    return work
