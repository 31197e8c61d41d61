"""Several runs in one picture: what each gained against what it forgot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ase_finetune.errors import InputError
from ase_finetune.reporting import page
from ase_finetune.reporting.figures import Chart, Missing, Panel, own_style
from ase_finetune.reporting.learning import duration
from ase_finetune.reporting.markup import table
from ase_finetune.reporting.measures import Array, column, set_errors
from ase_finetune.reporting.pareto import Point, pareto_front, pareto_panel
from ase_finetune.reporting.record import AFTER, BEFORE, LABEL, FrameRecord, RunRecord
from ase_finetune.reporting.relaxations import outcome
from ase_finetune.reporting.report import flat, method
from ase_finetune.reporting.sets import anchor, kept, long_name, target
from ase_finetune.reporting.stages import is_unchanged
from ase_finetune.reporting.tiles import digits

Runs = Mapping[str, RunRecord]
Measure = Callable[[FrameRecord, int], float]


def forces_mae(frames: FrameRecord, when: int) -> float:
    """meV/Å."""
    return set_errors(frames, when).forces


def energy_mae(frames: FrameRecord, when: int) -> float:
    """meV/atom."""
    return set_errors(frames, when).energy


def check_comparable(runs: Runs) -> None:
    """Refuse runs whose numbers do not mean the same.

    Raises
    ------
    InputError
        If they began with different models, or were judged by different data; the message names them.
    """
    if len(runs) < 2:
        raise InputError(f"a comparison needs two runs at least, got {len(runs)}")
    for what, value in (
        ("began with different models", lambda run: run.metadata.get("base_hash")),
        ("were judged by different validation frames", lambda run: _data(run, "valid")),
        ("were judged by different validation relaxations", lambda run: _data(run, "valid_relaxations")),
    ):
        _check_same(runs, what, value)
    if not any(_data(run, "valid") or _data(run, "valid_relaxations") for run in runs.values()):
        raise InputError(f"the runs {_names(runs)} have no validation data: what they gained cannot be told")


def _data(run: RunRecord, name: str) -> Any:
    return (run.metadata.get("data") or {}).get(name)


def _names(names: Sequence[str] | Runs) -> str:
    return ", ".join(map(repr, names))


def _check_same(runs: Runs, what: str, value: Callable[[RunRecord], Any]) -> None:
    groups: dict[Any, list[str]] = {}
    for name, run in runs.items():
        groups.setdefault(value(run), []).append(name)
    if len(groups) > 1:
        parts = " and ".join(_names(group) for group in groups.values())
        raise InputError(f"runs cannot be compared: {parts} {what}; compare those that have the same")


def write_comparison(runs: Runs, output: Path) -> Path:
    """Write a page that compares runs, and its pictures.

    Parameters
    ----------
    runs
        By the names they are shown with.
    output
        A folder, for ``comparison.html`` and ``comparison/``; or a file that ends in ``.html``.

    Returns
    -------
    The path of the page.

    Raises
    ------
    InputError
        As :func:`check_comparable`, or if no set of old structures is the same in all runs.
    OutputError
        If a file cannot be written.
    """
    check_comparable(runs)
    path = page.path_of(output, "comparison.html")
    sets = _common_sets(runs)
    with own_style():
        charts = [_chart(runs, name) for name in sets]
    first = next(iter(runs.values()))
    sections = [
        ("pareto", "Gained against forgotten", page.charts(charts)),
        ("runs", "The runs", _runs_table(runs, sets[0])),
        ("options", "Options that differ", _options_table(runs)),
    ]
    title = f"{len(runs)} ways to fine-tune {first.metadata.get('base_model') or 'a potential'}"
    lead = "Judged by the same validation data, and by the same old structures."
    content = page.page(title, lead, sections, "Written by ase_finetune")
    page.write(path, content, charts, path.with_suffix(""))
    return path


def _common_sets(runs: Runs) -> list[str]:
    """Names of the sets of old structures that all runs have, with the same structures."""
    first, *others = runs.values()
    found = []
    for frames in kept(first):
        same = [next((f for f in kept(run) if _same_structures(f, frames)), None) for run in others]
        if all(item is not None for item in same):
            found.append(frames.name)
    if not found:
        raise InputError(
            f"the runs {_names(runs)} did not watch the same old structures: give all of them the same replay, "
            "replay_size, monitor_size and seed"
        )
    return found


def _same_structures(one: FrameRecord, two: FrameRecord) -> bool:
    """By atoms and labels; energies may be in another reference."""
    return (
        one.name == two.name
        and one.own_labels == two.own_labels
        and np.array_equal(one.counts, two.counts)
        and np.array_equal(one.numbers, two.numbers)
        and _agree(one.forces[..., LABEL], two.forces[..., LABEL])
        and (bool(np.isfinite(one.forces[..., LABEL]).any()) or _same_energies([one, two]))
    )


def _agree(one: Array, two: Array) -> bool:
    """Labels of the model itself may differ in a last digit from run to run."""
    return one.shape == two.shape and np.allclose(one, two, rtol=1e-4, atol=1e-3, equal_nan=True)


def _same_energies(sets: Sequence[FrameRecord | None]) -> bool:
    """Whether the energies of the labels are in the same reference."""
    labels = [frames.energy[:, LABEL] for frames in sets if frames is not None]
    return all(_agree(labels[0], item) for item in labels[1:])


def _with_energies(runs: Runs, name: str) -> bool:
    """Whether energy errors mean the same in all runs, on the target and on a set of old structures."""
    of_target = [target(run) for run in runs.values()]
    return _same_energies(of_target) and _same_energies([_set(run, name) for run in runs.values()])


_NO_ENERGIES = (
    " Energies are left out: the runs have their labels in different references (option reference), so that their "
    "errors do not mean the same."
)


def _set(run: RunRecord, name: str) -> FrameRecord:
    return next(frames for frames in kept(run) if frames.name == name)


def _change(frames: FrameRecord | None, measure: Measure) -> float:
    return math.nan if frames is None else measure(frames, AFTER) - measure(frames, BEFORE)


def _chart(runs: Runs, name: str) -> Chart | Missing:
    """Gained on the target against forgotten on one set."""
    old = _set(next(iter(runs.values())), name)
    title = f"Target against {long_name(old)}"
    panels: list[Panel] = []
    energies = _with_energies(runs, name)
    measures: list[tuple[str, Measure, str, str]] = [("forces", forces_mae, "Forces", "meV/Å")]
    measures += [("energy", energy_mae, "Energies", "meV/atom")] if energies else []
    for key, measure, heading, unit in measures:
        points = [
            Point(
                _label(run, record),
                _change(_set(record, name), measure),
                -_change(target(record), measure),
                _method(record),
            )
            for run, record in runs.items()
        ]
        panel = pareto_panel(f"pareto-{anchor(old)}-{key}", heading, (unit, unit), points)
        panels += [panel] if panel else []
    for key, heading, unit in (("strain", "Relaxed cells", "median strain"), ("rmsd", "Relaxed positions", "RMSD, Å")):
        points = [
            Point(
                _label(run, record), _change(_set(record, name), forces_mae), _relaxations(record, key), _method(record)
            )
            for run, record in runs.items()
        ]
        panel = pareto_panel(f"pareto-{anchor(old)}-{key}", heading, (unit, "meV/Å"), points)
        panels += [panel] if panel else []
    if not panels:
        return Missing(title, f"no run has finite errors on both.{'' if energies else _NO_ENERGIES}".rstrip("."))
    caption = (
        "Each mark is a run: how far the mean absolute error fell on the target (up is better), and how far it rose on "
        "old structures (left is better). The cross is the untouched model. The grey line joins the runs that no "
        "other one beats in both. Circle: new data alone; square: replay; triangle: EWC; diamond: reEWC."
    )
    if old.own_labels:
        caption += " Old structures carry labels of the untouched model: what is shown is how far a run moved from it."
    caption += "" if energies else _NO_ENERGIES
    return Chart(f"pareto-{anchor(old)}", title, caption, panels)


def _label(name: str, run: RunRecord) -> str:
    """What a run is called where its result is shown."""
    return f"{name} (unchanged)" if is_unchanged(run) else name


def _method(run: RunRecord) -> str:
    return str((run.metadata.get("config") or {}).get("method"))


def _relaxations(run: RunRecord, key: str) -> float:
    """How far a median over the relaxations fell."""
    if run.pairs is None or not run.pairs.descriptions:
        return math.nan
    return outcome(run.pairs.before)[key] - outcome(run.pairs.after)[key]


def _runs_table(runs: Runs, name: str) -> str:
    """Errors, epochs and time of all runs; those on the front of the forces are marked."""
    old = long_name(_set(next(iter(runs.values())), name))
    points = [(_change(_set(run, name), forces_mae), -_change(target(run), forces_mae)) for run in runs.values()]
    front = set(pareto_front(points))
    first = next(iter(runs.values()))
    energies = _with_energies(runs, name)
    judged: list[tuple[str, Callable[[RunRecord], FrameRecord | None], Measure]] = []
    for words, pick in (("target", target), (old, lambda run: _set(run, name))):
        judged.append((f"{words}: forces", pick, forces_mae))
        judged += [("energies", pick, energy_mae)] if energies else []
    rows = [("untouched", "–", *(_error(pick(first), measure, BEFORE) for _, pick, measure in judged), "–", "–", "–")]
    for k, (label, run) in enumerate(runs.items()):
        seconds = float(np.nansum(column(run.history, "seconds"))) if run.history else 0.0
        cells = [_error(pick(run), measure, AFTER) for _, pick, measure in judged]
        mark = "front" if k in front else "–"
        rows.append((_label(label, run), method(run), *cells, str(len(run.history)), duration(seconds), mark))
    heads = ("run", "method", *(head for head, _, _ in judged), "epochs", "time", "front")
    note = "Mean absolute errors, meV/Å and meV/atom. Front: no other run is better in both forces."
    note += "" if energies else _NO_ENERGIES
    return f"<p><small>{note}</small></p>{table(heads, rows)}"


def _error(frames: FrameRecord | None, measure: Measure, when: int) -> str:
    value = math.nan if frames is None else measure(frames, when)
    return digits(value)


def _options_table(runs: Runs) -> str:
    """Options in which the runs are not all alike."""
    configs = [flat(run.metadata.get("config") or {}) for run in runs.values()]
    names = dict.fromkeys(name for config in configs for name in config)
    different = [n for n in names if any(config.get(n) != configs[0].get(n) for config in configs)]
    if not different:
        return "<p>All options are the same.</p>"
    rows = [(name, *(page.value(config.get(name)) for config in configs)) for name in different]
    return table(["option", *runs], rows)
