"""Tables in Markdown."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.science.measures import (
    COLUMNS,
    Results,
    area,
    change,
    forgotten,
    gained,
    mean,
    minutes,
    table_row,
    with_averages,
)
from benchmarks.science.measures import value as value_of
from benchmarks.science.plans import Plan
from benchmarks.science.relaxed import relaxations_table


def table(plan: Plan, results: Results) -> str:
    """The results of a study: a line per case, means over the seeds."""
    if not results:
        return f"{plan.study}, {plan.form}: no results yet"
    return relaxations_table(plan, results) if plan.kind == "relaxations" else frames_table(plan, results)


def how_it_was_made(plan: Plan, results: Results) -> str:
    """Command, machine, versions and dates of the results, in a paragraph."""
    runs = [run for found in results.values() for run in found]
    if not runs:
        return "Not run yet."
    machines = sorted({run["machine"] for run in runs})
    dates = sorted({run["date"] for run in runs})
    named = ("sevenn", "mace-torch", "ase")
    packages = sorted({f"{k} {version}" for run in runs for k, version in run["versions"].items() if k in named})
    form = "" if plan.form == "full" else " --quick" if plan.form == "quick" else f" --form {plan.form}"
    parts = [
        f"`python -m benchmarks.science {plan.study}{form} --data FOLDER`",
        *machines,
        *([", ".join(packages)] if packages else []),
        " to ".join(dict.fromkeys((dates[0], dates[-1]))),
        f"seeds {', '.join(map(str, sorted({run['seed'] for run in runs})))}",
    ]
    return "; ".join(parts) + "."


def frames_table(plan: Plan, results: Results) -> str:
    """Errors on every set, and what was gained and forgotten."""
    shown = with_averages(results)
    untouched = next((runs[0] for case, runs in results.items() if not case.options), None)
    target = plan.picture["target"]
    columns = {name: (of or target, measure, how) for name, (of, measure, how) in COLUMNS.items()}
    columns = {name: what for name, what in columns.items() if what[0] in plan.judged}
    titles = ["", "gained", "forgotten F, E", *columns, "min", "seeds"]
    lines = [table_row(titles), table_row(["---"] * len(titles))]
    for case, runs in shown.items():
        cells = [case.name]
        if untouched is None or not case.options:
            cells += ["", ""]
        else:
            fall = mean([gained(run, untouched, target) for run in runs])[0]
            rises = [
                mean([change(run, untouched, "mptrj", measure) for run in runs])[0]
                for measure in ("forces_mae", "energy_mae")
            ]
            cells += [f"{100 * fall:.0f} %", ", ".join(f"{100 * rise:+.1f}" for rise in rises) + " %"]
        for of, measure, how in columns.values():
            cells.append(_cell(*mean([value_of(run, of, measure) for run in runs]), how))
        cells += [_cell(mean([minutes(run) for run in runs])[0], math.nan, ".1f"), str(len(runs))]
        lines.append(table_row(cells))
    return "\n\n".join(["\n".join(lines), *_areas(plan, results, untouched)])


def _areas(plan: Plan, results: Results, untouched: dict[str, Any] | None) -> list[str]:
    """Area under the front of each group."""
    if untouched is None:
        return []
    groups: dict[str, list[tuple[float, float]]] = {}
    for case, runs in with_averages(results).items():
        if case.options:
            x = mean([forgotten(run, untouched) for run in runs])[0]
            y = mean([gained(run, untouched, plan.picture["target"]) for run in runs])[0]
            groups.setdefault(case.group or case.name, []).append((x, y))
    if len(groups) < 2:
        return []
    ordered = sorted(((area(points), name) for name, points in groups.items()), reverse=True)
    return ["area under the front: " + ", ".join(f"{name} {100 * size:.1f} %" for size, name in ordered)]


def _cell(middle: float, spread: float, how: str) -> str:
    if math.isnan(middle):
        return "-"
    return f"{middle:{how}}" if math.isnan(spread) else f"{middle:{how}} ± {spread:{how}}"
