"""Trainings, relaxations and files on the device against the CPU, and what happens when memory runs out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.errors import RunStoppedError
from ase_finetune.finetuning.keeping import RunKeeper
from ase_finetune.losses import Loss
from ase_finetune.metrics import evaluate as evaluate_model
from ase_finetune.optimize import relax
from ase_finetune.potentials import Potential
from benchmarks.gpu.models import graphs, plain
from benchmarks.gpu.right_values import Twins, errors, evaluate, verdict
from benchmarks.inputs import flat_penalty, train, trainer
from benchmarks.training_step import naive
from benchmarks.workers import fresh


def steps(one: Twins) -> dict[str, Any]:
    """The loss after three pairs of steps of reEWC, target and replay in turn, on the device and on the CPU."""
    found, wanted = (_trained(one, device) for device in (one.bench.device, torch.device("cpu")))
    return verdict({"loss": abs(found / wanted - 1)}, {"loss": 1e-6}, loss=found)


def _trained(one: Twins, device: torch.device) -> float:
    model = one.copied(device, "float64")
    made = graphs(model, one.frames)
    config = dataclasses.replace(naive(Loss(), 1), method="reewc", replay_batch_size=2, learning_rate=1e-4)
    trained = trainer(model, made[:2], config, made[:2], flat_penalty(model))
    train(trained, [[0], [1], [0]])
    found = evaluate_model(model, made, Loss())
    assert found is not None
    return found.loss


def relaxation(one: Twins, dtype: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Where a batch of relaxations with cells ends, and after how many steps."""
    starts, most = [plain(atoms) for atoms in one.frames], one.bench.size(5, 100, 100)
    found, wanted = (
        relax(starts, FinetunedCalculator(model, device=str(model.device)), cell=True, fmax=0.05, steps=most, **more)
        for model, more in ((one.on(dtype), options), (one.reference, {}))
    )
    apart = [
        abs(f.atoms.get_potential_energy() - w.atoms.get_potential_energy()) / len(w.atoms)
        for f, w in zip(found, wanted, strict=True)
    ]
    counts = max(abs(f.steps - w.steps) for f, w in zip(found, wanted, strict=True))
    # float32 may stop a step earlier or later.
    bounds = {"float64": {"energy": 1e-3, "steps": 0}, "float32": {"energy": 1.0, "steps": 10}}[dtype]
    return verdict({"energy": 1e3 * max(apart), "steps": counts}, bounds, made=[result.steps for result in found])


def saved(one: Twins) -> dict[str, Any]:
    """A saved potential gives the same bits on the same device, and the same values on the CPU."""
    calculator = FinetunedCalculator(one.on("float32"), device=str(one.bench.device))
    before = [dict(evaluate(calculator, atoms)) for atoms in one.structures]
    with tempfile.TemporaryDirectory() as folder:
        calculator.save(Path(folder) / "saved")
        again = FinetunedCalculator(Path(folder) / "saved", device=str(one.bench.device))
        elsewhere = FinetunedCalculator(Path(folder) / "saved", device="cpu")
        found = [dict(evaluate(again, atoms)) for atoms in one.structures]
        on_cpu = errors([dict(evaluate(elsewhere, atoms)) for atoms in one.structures], before)
    weights = zip(one.on("float32").native_parameters(), again.potential.native_parameters(), strict=True)
    differing = sum(not torch.equal(p, q) for (_, p), (_, q) in weights)
    # Sums of a GPU are not repeatable to the last bit; the weights are.
    here = errors(found, before)
    measured = {"weights": differing, "forces": here["forces"], "on the CPU": on_cpu["forces"]}
    return verdict(measured, {"weights": 0, "forces": 1e-5, "on the CPU": 1e-4})


def resumed(one: Twins) -> dict[str, Any]:
    """A run that was stopped in its second epoch and resumed ends where one does that was not."""
    model, frames = one.on("float32"), one.frames[:4]
    with tempfile.TemporaryDirectory() as folder:
        whole = _run(model, frames, Path(folder) / "whole")
        with _stopped_after(3), contextlib.suppress(RunStoppedError):
            _run(model, frames, Path(folder) / "stopped")
            raise RuntimeError("the run was to be stopped, but went on to its end")
        again = _run(model, frames, Path(folder) / "stopped", resume=True)
    (found, wanted) = (calculator.history[-1]["train_loss"] for calculator in (again, whole))
    return verdict({"loss": abs(found / wanted - 1)}, {"loss": 1e-3 if one.bench.on_gpu else 1e-5}, loss=found)


def _run(model: Potential, frames: list[Atoms], output: Path, resume: bool = False) -> FinetunedCalculator:
    options: dict[str, Any] = {
        "method": "naive",
        "epochs": 2,
        "batch_size": 1,
        "report": False,
        "verbose": False,
        "monitor_size": 1,
    }
    return finetune(model, frames[:2], None, replay=None, output=output, resume=resume, **options)


@contextlib.contextmanager
def _stopped_after(iterations: int) -> Iterator[None]:
    """Send this process SIGTERM when a run has made so many iterations."""
    original, made = RunKeeper.after_step, 0

    def after_step(self: RunKeeper, trainer: Any) -> None:
        nonlocal made
        made += 1
        if made == iterations:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer)

    RunKeeper.after_step = after_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        RunKeeper.after_step = original  # type: ignore[method-assign]


def halving(one: Twins) -> dict[str, Any]:
    """A process with part of the memory: batches that do not fit are halved, and the results are the same."""
    # A pair potential takes little memory.
    atoms = 512 if one.name == "pair" else one.bench.size(8, 64, 216)
    task = {"model": one.name, "device": str(one.bench.device), "threads": torch.get_num_threads()}
    # Read by the process that measures: what it frees goes back to the system at once, and its peaks are seen.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    found = fresh("gpu.scarce", task | {"count": one.bench.size(16, 16, 64), "atoms": atoms})
    named = {name: found[name] for name in ("forces", "gradient")}
    row = verdict(named, {"forces": 1e-4, "gradient": 2e-3}, **found)
    row["right"] = bool(row["right"] and found["halved"])
    row["short"] = f"pieces of {found['pieces']} of {found['whole']} edges" if found["halved"] else "memory was enough"
    return row
