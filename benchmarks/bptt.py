"""Gradients through 50 steps of relaxing 20 crystals, time and memory: adjoint sweep against unrolled autograd.

All kinds of gradients, and how they grow with the steps: ``python -m benchmarks.bptt_kinds``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from ase_finetune import FinetunedCalculator
from ase_finetune.graphs.neighbors import neighbor_list
from ase_finetune.optimize import FIREStep
from ase_finetune.optimize.relaxation import Relaxation
from ase_finetune.trajectories import Rollout, StructureLoss, Structures, rollout
from benchmarks.inputs import MODEL, small_crystals
from benchmarks.paired import Comparison
from benchmarks.suite import Missing, Row, Setting, Target
from benchmarks.workers import MIB, Peak, WorkerError, answer, fresh

TARGETS = {"time": Target(cpu=1.3, gpu=1.3), "peak memory": Target(cpu=0.2, gpu=0.2)}
COUNT, STEPS, QUICK_STEPS = 20, 50, 2

#: What unrolled autograd keeps of 7net-0 for an edge and a step, about; measured with float32 and FIRE.
MIB_PER_EDGE_AND_STEP = 0.36
LARGEST_MIB = 20 * 1024.0


def pairs(count: int) -> tuple[list[Atoms], list[Atoms]]:
    """Displaced crystals of at most 8 atoms with the fewest edges, and those they are compared with."""
    ordered = sorted(small_crystals(200, 8), key=_edges)[:count]
    displaced = []
    for index, atoms in enumerate(ordered):
        start = atoms.copy()
        start.rattle(0.05, seed=index)
        displaced.append(start)
    return displaced, ordered


def _edges(atoms: Atoms) -> int:
    return int(neighbor_list(atoms, 5.0)[0].shape[1])


def gradient(
    potential: Any, starts: Sequence[Atoms], targets: Sequence[Atoms], options: dict[str, Any], method: Any
) -> Rollout:
    """Forward and backward once; the gradient by the parameters is left in them."""
    run = rollout(list(starts), potential, method, **options)
    if run.structures is None or len(run.kept) < len(starts):
        raise SystemExit(f"a relaxation failed: {run.failed}")
    wanted = Structures.from_atoms(list(targets), device=potential.device)
    potential.zero_grad()
    total = StructureLoss()(run.structures, wanted).sum()
    if run.guide is not None:
        total = total + StructureLoss()(run.guide, wanted).sum()
    total.backward()
    return run


def plain_autograd(potential: Any, starts: Sequence[Atoms], targets: Sequence[Atoms], steps: int, method: Any) -> None:
    """What anyone would write: one forward pass that keeps all graphs, one backward pass."""
    relaxation = Relaxation(potential, method, list(starts))
    state = relaxation.start()
    for _ in range(steps):
        graph, _ = relaxation.graph(state)
        assert graph is not None
        state = relaxation.move(state, relaxation.evaluate(state, graph, create_graph=True).forces)
    wanted = Structures.from_atoms(list(targets), device=potential.device)
    positions, cell = relaxation.coordinates.structure(state.coordinates)
    end = Structures(positions, cell, wanted.pbc, wanted.batch, wanted.masses)
    potential.zero_grad()
    StructureLoss()(end, wanted).sum().backward()


def flat_gradient(potential: Any) -> torch.Tensor:
    """The gradient of all parameters in one vector on the CPU, which waits for a GPU; it must be finite."""
    flat = torch.cat([p.grad.double().flatten() for p in potential.parameters() if p.grad is not None]).cpu()
    if not bool(flat.isfinite().all()):
        raise SystemExit("the gradient is not finite")
    return flat


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """One gradient in this process, after an evaluation that warms up."""
    torch.set_num_threads(task["threads"])
    calculator = FinetunedCalculator(MODEL, device=task["device"])
    starts, targets = pairs(task["count"])
    calculator.calculate(starts[0], ["energy", "forces", "stress"])
    peak, start = Peak(calculator.potential.device), time.perf_counter()
    if task["kind"] == "adjoint":
        options = {"steps": task["steps"], "gradient": "adjoint"}
        gradient(calculator.potential, starts, targets, options, FIREStep())
    else:
        plain_autograd(calculator.potential, starts, targets, task["steps"], FIREStep())
    norm = float(flat_gradient(calculator.potential).norm())
    return {"seconds": time.perf_counter() - start, "peak": peak.read() / MIB, "norm": norm}


def affordable(setting: Setting, count: int, steps: int) -> int:
    """Structures whose unrolled graphs fit into 20 GiB, and into what is free here."""
    room = LARGEST_MIB
    info = Path("/proc/meminfo")
    if not setting.on_gpu and info.exists():
        line = next(line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("MemAvailable"))
        room = min(room, 0.85 * int(line.split()[1]) / 1024)
    used = 0.0
    for index, atoms in enumerate(pairs(count)[1]):
        used += MIB_PER_EDGE_AND_STEP * _edges(atoms) * steps
        if used > room:
            return max(1, index)
    return count


def run(setting: Setting) -> Iterator[Row | Missing]:
    wanted, steps = setting.size((1, QUICK_STEPS), (COUNT, STEPS))
    count = affordable(setting, wanted, steps)
    name, against = f"{count} crystals, {steps} steps of FIRE", "unrolled autograd"
    task = {"count": count, "steps": steps, "device": str(setting.device), "threads": torch.get_num_threads()}
    found: dict[str, list[dict[str, Any]]] = {"adjoint": [], "plain": []}
    try:
        # Each in a fresh process: what one side keeps must not count for the other.
        for repeat in range(setting.times(1)["repeats"]):
            for kind in ("adjoint", "plain") if repeat % 2 else ("plain", "adjoint"):
                found[kind].append(fresh("bptt", task | {"kind": kind}))
    except WorkerError as error:
        yield Missing(name, against, str(error))
        return
    norms = [found[kind][0]["norm"] for kind in found]
    notes = f"norms of the gradients differ by {abs(norms[0] / norms[1] - 1):.0e}"
    if count < wanted:
        notes += f"; reduced from {wanted} structures to what unrolled can hold here"
    for what, key, unit in (("time", "seconds", "s"), ("peak memory", "peak", "MiB")):
        measured = Comparison(*([answered[key] for answered in found[kind]] for kind in ("adjoint", "plain")))
        yield Row(f"{what}, {name}", against, measured, TARGETS[what].on(setting), unit, notes)


if __name__ == "__main__":
    answer(measure)
