"""One case of a study on relaxations: train, relax what was held out, and judge."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ase import Atoms

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.data import PairSet
from ase_finetune.optimize import relax
from ase_finetune.optimize.pool import Relaxed
from ase_finetune.trajectories.evaluation import SAME_BASIN
from ase_finetune.trajectories.losses import cell_strain, delta_q, log_volume_ratio, rmsd
from ase_finetune.trajectories.structures import Structures
from benchmarks.science.judging import Judge, errors_on
from benchmarks.science.pairs import at_rest, frame_set, read_sets, trajectory_frames
from benchmarks.science.plans import Case, Plan

#: Every so manieth frame of a DFT relaxation is trained on, or judged.
EVERY = 16

#: How held-out structures are relaxed, where the plan does not say otherwise.
RELAXED: dict[str, Any] = {"fmax": 0.03, "steps": 500, "cell": True, "starts": True}


def relax_case(plan: Plan, case: Case, seed: int, data: Path, work: Path, judge: Judge) -> dict[str, Any]:
    """What a case gives: how held-out relaxations end, its errors by set, its history and its time.

    Parameters
    ----------
    plan, case, seed
        What to run; the seed also chooses what is held out where the study has folds.
    data
        Folder of the research data.
    work
        Folder for the checkpoints, from which an interrupted case goes on.
    judge
        Of the sets.
    """
    train, held_out = read_sets(data, plan.train, case.frames, seed)
    options = plan.options | case.options
    if not case.options:
        calculator = FinetunedCalculator(plan.model, device=options.get("device", "auto"))
        return _judged(calculator, held_out, plan, data, judge) | {"seconds": 0.0}
    if "bptt" in plan.options and "bptt" in case.options:
        options["bptt"] = plan.options["bptt"] | case.options["bptt"]
    start = time.process_time()
    calculator = finetune(
        plan.model,
        _labelled(case, train, data),
        None,
        relaxations=train if options["method"].startswith("bptt") else None,
        valid_relaxations=None,  # the last epoch is kept: no way has the luck of a choice
        output=work,
        resume=True,
        report=False,
        seed=seed,
        **options if options["method"].startswith("bptt") else _of_frames(options),
    )
    cpu = time.process_time() - start
    return {
        "options": options,
        "train_pairs": len(train),
        # Epochs, validation included, whether or not the case went on from a checkpoint.
        "seconds": sum(row["seconds"] for row in calculator.history),
        "cpu_seconds": cpu,
        "history": calculator.history,
        **_judged(calculator, held_out, plan, data, judge),
    }


def _labelled(case: Case, train: PairSet, data: Path) -> Any:
    """Labelled frames that come before the pairs, or in their place."""
    if case.labelled == "minima":
        return at_rest(train)
    return trajectory_frames(data, train, EVERY) if case.labelled == "trajectories" else None


def _of_frames(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "bptt"}


def _judged(calculator: FinetunedCalculator, held_out: PairSet, plan: Plan, data: Path, judge: Judge) -> dict[str, Any]:
    """Where held-out structures end, what the potential says of the DFT minima, and what is left of the other sets."""
    potential = calculator.potential
    sets = judge(potential) | {
        "minima": errors_on(potential, frame_set(at_rest(held_out, energies=True), "minima")),
    }
    if plan.train["set"] == "phosphates":
        sets["trajectories"] = errors_on(potential, frame_set(trajectory_frames(data, held_out, EVERY), "held out"))
    return {"pairs": relaxed_pairs(calculator, held_out, RELAXED | plan.relaxed), "sets": sets}


def relaxed_pairs(calculator: FinetunedCalculator, pairs: PairSet, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where relaxations of the starts end, and where those of the DFT minima do (``own``), as distances from these.

    The second is the error of the minimum that belongs to the pair, whatever basin the start leads to.
    """
    how = dict(options)
    starts = [pair.initial for pair in pairs] if how.pop("starts") else []
    minima = [pair.relaxed for pair in pairs]
    ends = relax([*starts, *minima], calculator, progress=False, **how)
    own = ends[len(starts) :]
    found = []
    for k, pair in enumerate(pairs):
        row: dict[str, Any] = {"name": pair.name, "own": _distances(own[k], pair.relaxed)}
        if starts:
            apart = None if own[k].failure else _distances(ends[k], own[k].atoms)
            same = apart is not None and apart["rmsd"] < SAME_BASIN[0] and apart["strain"] < SAME_BASIN[1]
            row |= _distances(ends[k], pair.relaxed) | {"right_basin": same}
        found.append(row)
    return found


def _distances(end: Relaxed, target: Atoms) -> dict[str, Any]:
    """Of where a relaxation ended from a target; NaN after a failure."""
    row: dict[str, Any] = {"steps": end.steps, "converged": end.converged, "failure": end.failure}
    if end.failure is not None:
        return row | dict.fromkeys(("rmsd", "strain", "delta_q", "log_volume"), math.nan)
    final, wanted = Structures.from_atoms([end.atoms]), Structures.from_atoms([target])
    return row | {
        "rmsd": float(rmsd(final, wanted)),
        "strain": float(cell_strain(final, wanted)),
        "delta_q": float(delta_q(final, wanted)),
        "log_volume": float(log_volume_ratio(final, wanted)),
    }
