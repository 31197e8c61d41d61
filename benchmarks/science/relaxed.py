"""What tables and pictures show of relaxations: how far from DFT they end, and how sure the change is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.science.measures import Results, mean, minutes, table_row, value
from benchmarks.science.plans import Plan

#: Columns of errors: label, measure of a pair and format.
MEASURES = {
    "RMSD + strain": ("structure", ".3f"),
    "RMSD, Å": ("rmsd", ".3f"),
    "strain": ("strain", ".4f"),
    "Delta Q, Å amu½": ("delta_q", ".2f"),
    "volume, %": ("volume", ".2f"),
}

#: Label, set, measure and format of the errors of single points.
POINTS = {
    "F at the minima": ("minima", "forces_mae", ".1f"),
    "S at the minima": ("minima", "stress_mae", ".2f"),
    "E of the minima": ("minima", "energy_mae_aligned", ".1f"),
    "F on the way": ("trajectories", "forces_mae", ".1f"),
    "E on the way": ("trajectories", "energy_mae_aligned", ".1f"),
    "MPtrj E": ("mptrj", "energy_mae", ".1f"),
    "MPtrj F": ("mptrj", "forces_mae", ".1f"),
}


#: Å, and the same of a strain, in per cent of a volume and in Å amu½: as good as right.
RIGHT = 0.01

# Factor beyond which a pair got better or worse.
_MUCH = 1.25


class Change(NamedTuple):
    """How a median moved, in per cent.

    Attributes
    ----------
    old, new
        Medians over the pairs that count with both models.
    percent, low, high
        Change of the median, and its 90 % interval by a bootstrap over pairs.
    typical
        Geometric mean of the pairs' own ratios, as a change: a median can jump from one kind of crystal to another.
        What is below :data:`RIGHT` counts as that.
    better, worse
        Pairs that fell by a fifth, or rose by a quarter.
    pairs
        How many there are.
    """

    old: float
    new: float
    percent: float
    low: float
    high: float
    typical: float
    better: int
    worse: int
    pairs: int


def by_pair(runs: Sequence[dict[str, Any]], of: str = "own") -> dict[str, dict[str, float]]:
    """Errors of each pair; of several seeds the median.

    Parameters
    ----------
    runs
        Of one case.
    of
        ``"own"``: of the minimum that the DFT structure itself relaxes to. ``"start"``: of where the initial structure
        ends, for pairs that ended in the basin of that minimum with most seeds.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for pair in run["pairs"]:
            rows.setdefault(pair["name"], []).append(pair)
    found = {}
    for name, pairs in rows.items():
        if of == "own":
            right = [_errors(pair["own"]) for pair in pairs if "own" in pair and pair["own"]["failure"] is None]
        else:
            right = [_errors(pair) for pair in pairs if pair.get("right_basin")]
        if 2 * len(right) > len(pairs):
            found[name] = {measure: median(errors[measure] for errors in right) for measure in right[0]}
    return found


def basis(runs: Sequence[dict[str, Any]]) -> str:
    """Which errors of these runs are compared, see :func:`by_pair`: their own minima, where they were relaxed."""
    return "own" if "own" in runs[0]["pairs"][0] else "start"


def changed(
    runs: Sequence[dict[str, Any]], untouched: Sequence[dict[str, Any]], measure: str, of: str = "own"
) -> Change | None:
    """Of a measure, on the pairs that both models have an error of, see :func:`by_pair`; ``None`` if there are none."""
    before, after = by_pair(untouched, of), by_pair(runs, of)
    both = [name for name in before if name in after]
    if not both:
        return None
    old = np.array([before[name][measure] for name in both])
    new = np.array([after[name][measure] for name in both])
    picks = np.random.default_rng(0).integers(0, len(both), size=(2000, len(both)))
    with np.errstate(divide="ignore", invalid="ignore"):
        changes = 100 * (np.median(new[picks], axis=1) / np.median(old[picks], axis=1) - 1)
        percent = 100 * (np.median(new) / np.median(old) - 1)
    ratios = np.maximum(new, RIGHT) / np.maximum(old, RIGHT)
    typical = 100 * (np.exp(np.mean(np.log(ratios))) - 1)
    better, worse = int((ratios < 1 / _MUCH).sum()), int((ratios > _MUCH).sum())
    low, high = np.percentile(changes, [5, 95])
    old_median, new_median = float(np.median(old)), float(np.median(new))
    return Change(
        old_median, new_median, float(percent), float(low), float(high), float(typical), better, worse, len(both)
    )


def relaxations_table(plan: Plan, results: Results) -> str:
    """How held-out relaxations end, and what is left of the rest."""
    untouched = next((runs for case, runs in results.items() if not case.options), None)
    if untouched is None:
        return f"{plan.study}, {plan.form}: no table without the untouched model"
    of, started = basis(untouched), "right_basin" in untouched[0]["pairs"][0]
    points = {name: what for name, what in POINTS.items() if what[0] in untouched[0]["sets"]}
    titles = ["", "pairs", *MEASURES, "typical", "better, worse", *points, "min", "seeds"]
    if started:
        titles[2:2] = ["right basin"]
    if started and of == "own":
        titles[3:3] = ["RMSD + strain from the start"]
    lines = [_WHAT[of], "", table_row(titles), table_row(["---"] * len(titles))]
    for case, runs in results.items():
        same = not case.options
        cells = [case.name, str(runs[0].get("train_pairs", ""))]
        if started:
            right = sum(pair["right_basin"] for run in runs for pair in run["pairs"])
            cells.append(f"{right}/{sum(len(run['pairs']) for run in runs)}")
        if started and of == "own":
            cells.append(_change(runs, untouched, "structure", ".3f", "start", same=same))
        cells += [_change(runs, untouched, *how, of, same=same) for how in MEASURES.values()]
        whole = changed(runs, untouched, "structure", of)
        cells += ["", ""] if whole is None or same else [f"{whole.typical:+.0f} %", f"{whole.better}, {whole.worse}"]
        for where, measure, how in points.values():
            known = [number for run in runs if not math.isnan(number := value(run, where, measure))]
            cells.append(f"{fmean(known):{how}}" if known else "-")
        cells += [f"{mean([minutes(run) for run in runs])[0]:.1f}", str(len(runs))]
        lines.append(table_row(cells))
    return "\n".join(lines)


_WHAT = {
    "own": "medians over held-out pairs, of the minimum that the DFT structure relaxes to; (change [90 % bootstrap]); "
    "typical: geometric mean of the pairs' own changes of RMSD + strain; better, worse: pairs beyond a factor of 1.25",
    "start": "medians of the starts that relax into the right basin; (change on pairs that both relax into it "
    "[90 % bootstrap]); typical: geometric mean of the pairs' own changes of RMSD + strain; better, worse: pairs "
    "beyond a factor of 1.25",
}


def _errors(pair: dict[str, Any]) -> dict[str, float]:
    distances = {name: float(pair[name]) for name in ("rmsd", "strain", "delta_q")}
    volume = 100 * abs(math.expm1(pair["log_volume"]))
    return distances | {"structure": distances["rmsd"] + distances["strain"], "volume": volume}


def _change(
    runs: Sequence[dict[str, Any]],
    untouched: Sequence[dict[str, Any]],
    measure: str,
    how: str,
    of: str,
    *,
    same: bool,
) -> str:
    own = [errors[measure] for errors in by_pair(runs, of).values()]
    middle = f"{median(own):{how}}" if own else "-"
    found = changed(runs, untouched, measure, of)
    if same or found is None or math.isnan(found.percent):
        return middle
    return f"{middle} ({found.percent:+.0f} % [{found.low:+.0f}, {found.high:+.0f}])"
