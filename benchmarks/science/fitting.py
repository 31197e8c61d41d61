"""One case of a study on labelled frames: fine-tune, and judge on every set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.potentials import load_potential
from benchmarks.science.curvature import make_fisher
from benchmarks.science.judging import Judge, moved_to, read_set
from benchmarks.science.lora import finetune_with_lora
from benchmarks.science.plans import Case, Plan


def fit_case(plan: Plan, case: Case, seed: int, data: Path, work: Path, judge: Judge) -> dict[str, Any]:
    """What a case gives: its errors by set, its history and its time.

    Parameters
    ----------
    plan, case, seed
        What to run.
    data
        Folder of the research data; options that begin with ``data:`` are files in it.
    work
        Folder for the checkpoints, from which an interrupted case goes on.
    judge
        Of the sets.
    """
    model = case.start or plan.model
    options = {name: _located(value, data) for name, value in (plan.options | case.options).items()}
    if not case.options and not case.averages:
        calculator = FinetunedCalculator(model, device=options.get("device", "auto"))
        return {"sets": judge(calculator.potential), "seconds": 0.0}
    if case.fisher:
        options["fisher"] = str(make_fisher(model, case.fisher, work.parent / f"{work.name}-fisher.safetensors"))
    train = read_set(data, plan.train["set"], case.frames or plan.train.get("frames"))
    goes_on, start = (work / "checkpoints").exists(), time.process_time()
    if case.lora:
        calculator = finetune_with_lora(model, train, case.lora, seed=seed, **options)
    else:
        calculator = finetune(model, train, output=work, resume=True, report=False, seed=seed, **options)
    cpu = time.process_time() - start
    offsets = calculator.metadata.get("reference_offsets", {})
    result: dict[str, Any] = {
        "train_frames": len(train),
        "sets": judge(calculator.potential, offsets),
        # Epochs, validation included, whether or not the case went on from a checkpoint.
        "seconds": sum(row["seconds"] for row in calculator.history),
        # Unknown of a case that went on in another process.
        "cpu_seconds": None if goes_on else cpu,
        "offsets": offsets,
        "history": calculator.history,
    }
    if case.averages and seed == case.seeds[0]:
        result["averages"] = _averages(case, work, judge, offsets)
    return result


def _averages(case: Case, work: Path, judge: Judge, offsets: dict[str, float]) -> dict[str, Any]:
    """Errors of weights in between, by the fraction of the way to the fine-tuned ones."""
    found = {}
    for fraction in case.averages:
        calculator = FinetunedCalculator(work / "model")
        start, _ = load_potential(calculator.metadata["base_model"])
        moved_to(calculator, start, fraction)
        found[f"{fraction:g}"] = judge(calculator.potential, offsets)
    return found


def _located(value: Any, data: Path) -> Any:
    return str(data / value.removeprefix("data:")) if isinstance(value, str) and value.startswith("data:") else value
