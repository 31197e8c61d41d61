"""What tables and pictures show of a result, and the area under a Pareto front."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ase_finetune.reporting.pareto import pareto_front
from benchmarks.science.plans import Case

Results = dict[Case, list[dict[str, Any]]]

#: Label, set, measure and format of the columns of a study on frames.
COLUMNS: dict[str, tuple[str, str, str]] = {
    "target F": ("", "forces_mae", ".1f"),
    "target E": ("", "energy_mae_target", ".2f"),
    "E aligned": ("", "energy_mae_aligned", ".2f"),
    "slope": ("", "slope", ".3f"),
    "MPtrj F": ("mptrj", "forces_mae", ".1f"),
    "MPtrj E": ("mptrj", "energy_mae", ".2f"),
    "WBM E": ("wbm", "energy_mae", ".1f"),
    "LiPS F": ("lips", "forces_mae", ".1f"),
    "LiPS E aligned": ("lips", "energy_mae_aligned", ".2f"),
    "Si F": ("silicon", "forces_mae", ".1f"),
    "Si E aligned": ("silicon", "energy_mae_aligned", ".2f"),
}


def value(result: dict[str, Any], of: str, measure: str) -> float:
    """A measure of a result on a set; ``nan`` if it is not there."""
    found = result["sets"].get(of, {}).get(measure)
    return math.nan if found is None else float(found)


def minutes(result: dict[str, Any]) -> float:
    """Of training: of the processor where there is no GPU, since cores are shared; ``nan`` if it is not known.

    By the clock where the time of the processor was not measured at all: on a GPU, and of the untouched model.
    """
    if "no GPU" not in result["machine"] or "cpu_seconds" not in result:
        return float(result["seconds"]) / 60
    found = result["cpu_seconds"]
    return math.nan if found is None else float(found) / 60


def with_averages(results: Results) -> Results:
    """The results and, as cases of their own, those of averaged weights."""
    found: Results = {}
    for case, runs in results.items():
        found[case] = runs
        for fraction in case.averages:
            name = f"{case.name}, {100 * fraction:.0f} % of the way"
            parts = [run | {"sets": run["averages"][f"{fraction:g}"]} for run in runs if "averages" in run]
            if parts:  # they are judged with the first seed
                found[replace(case, name=name, group=case.group or case.name)] = parts
    return found


def mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean over the seeds and standard deviation between them, ``nan`` of a single one."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def change(run: dict[str, Any], untouched: dict[str, Any], of: str, measure: str) -> float:
    """Relative change of a measure against the untouched model."""
    return value(run, of, measure) / value(untouched, of, measure) - 1


def forgotten(run: dict[str, Any], untouched: dict[str, Any]) -> float:
    """Rise of the force error plus rise of the energy error on MPtrj, halved: one number for pictures."""
    return 0.5 * sum(change(run, untouched, "mptrj", measure) for measure in ("forces_mae", "energy_mae"))


def gained(run: dict[str, Any], untouched: dict[str, Any], target: str) -> float:
    """Fall of the force error on the target; of the energies after the best offset where it has no forces."""
    has_forces = not math.isnan(value(untouched, target, "forces_mae"))
    return -change(run, untouched, target, "forces_mae" if has_forces else "energy_mae_aligned")


def area(points: Sequence[tuple[float, float]], most_forgotten: float = 0.2) -> float:
    """Area under the front of (forgotten, gained) points, from nothing to ``most_forgotten``; 0 at worst.

    A model that forgets less than another may be chosen instead of it, so the front is a staircase. What gets better on
    the old material counts as nothing forgotten.
    """
    kept = [(max(0.0, x), y) for x, y in points if x <= most_forgotten]
    front = [kept[k] for k in pareto_front(kept)]
    if not front:
        return 0.0
    ends = [x for x, _ in front[1:]] + [most_forgotten]
    return sum(max(0.0, y) * (end - x) for (x, y), end in zip(front, ends, strict=True)) / most_forgotten


def table_row(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"
