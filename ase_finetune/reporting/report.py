"""The report of a run: one page, and its pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ase_finetune.reporting import page
from ase_finetune.reporting.elements import periodic_table
from ase_finetune.reporting.figures import Chart, Missing, own_style
from ase_finetune.reporting.learning import cost, learning_curves, penalty, skipped
from ase_finetune.reporting.markup import folded, table, text
from ase_finetune.reporting.measures import set_errors
from ase_finetune.reporting.parameters import drift
from ase_finetune.reporting.parity import parity, softening
from ase_finetune.reporting.record import AFTER, BEFORE, FrameRecord, RunRecord
from ase_finetune.reporting.relaxations import relaxation_charts
from ase_finetune.reporting.sets import kept, long_name, target, trained_on
from ase_finetune.reporting.tiles import in_form
from ase_finetune.reporting.verdict import judge

Charts = list[Chart | Missing]

#: Names of the methods as they are written.
METHODS = {"reewc": "reEWC", "ewc": "EWC", "bptt": "BPTT", "naive": "the new data alone", "replay": "replay"}


def write_report(record: RunRecord, output: Path, *, defaults: Mapping[str, Any] | None = None) -> Path:
    """Write ``report.html`` and the pictures in ``report/``.

    The page is one file that needs neither network nor scripts, in light and dark, for desktop, phone and print.

    Parameters
    ----------
    record
        The run.
    output
        A folder, for ``report.html`` and ``report/``; or a file that ends in ``.html``, with the pictures in a folder
        of its name. It is made if need be; an earlier report there is replaced.
    defaults
        Options as they are when nothing is asked for; only those that differ are then shown unfolded.

    Returns
    -------
    The path of the page.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    path = page.path_of(Path(output), "report.html")
    record = _with_own_names(record)
    with own_style():
        parts = _charts(record)
    sections = [("summary", "Verdict", page.summary(judge(record)) + _errors_table(record))]
    sections += [(anchor, heading, page.charts(items)) for anchor, heading, items in parts if items]
    sections += [("run", "The run", _run_section(record, defaults or {}))]
    versions = record.metadata.get("versions") or {}
    content = page.page(
        title(record), _lead(record), sections, f"Written by ase_finetune {versions.get('ase_finetune', '')}".strip()
    )
    page.write(path, content, [item for _, _, items in parts for item in items], path.with_suffix(""))
    return path


def title(record: RunRecord) -> str:
    """Of a run: its model and method."""
    return f"{record.metadata.get('base_model') or 'A potential'} fine-tuned with {method(record)}"


def method(record: RunRecord) -> str:
    """Of a run, as it is written."""
    name = str((record.metadata.get("config") or {}).get("method") or "another method")
    return " + ".join(METHODS.get(part, part) for part in name.split("+"))


def _with_own_names(record: RunRecord) -> RunRecord:
    """Sets of equal names are numbered."""
    taken: set[str] = set()
    frames = []
    for item in record.frames:
        names = (item.name, *(f"{item.name} ({k})" for k in range(2, len(record.frames) + 2)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        frames.append(dataclasses.replace(item, name=name))
    return dataclasses.replace(record, frames=frames)


def _charts(record: RunRecord) -> list[tuple[str, str, Charts]]:
    """Anchor, heading and charts of each section."""
    aim, old = target(record), kept(record)
    sets = [*([aim] if aim else []), *trained_on(record), *old]
    if aim is None and record.pairs is None:
        absent: Charts = [Missing("Parity and elements of the target", "there was no validation set")]
    else:
        absent = []
    if not old:
        absent.append(Missing("Parity and elements of old structures", "none were watched"))
    return [
        ("learning", "How training went", [*learning_curves(record), penalty(record), skipped(record)]),
        ("relaxations", "Relaxations", relaxation_charts(record.pairs)),
        ("errors", "Errors before and after", [*(parity(item) for item in sets), softening(sets), *absent]),
        ("elements", "Learnt and forgotten, by element", _all(periodic_table, sets)),
        ("parameters", "What moved", [drift(record.drift)]),
        ("time", "Cost", [cost(record)]),
    ]


def _all(chart: Callable[[FrameRecord], Chart | Missing], sets: Iterable[FrameRecord]) -> Charts:
    return [chart(item) for item in sets]


_MEASURES = (
    ("energy", "energy MAE, meV/atom", ".2f"),
    ("aligned", "energy MAE after the best offsets, meV/atom", ".2f"),
    ("forces", "force MAE, meV/Å", ".1f"),
    ("stress", "stress MAE, kbar", ".2f"),
    ("slope", "softening slope", ".3f"),
)


def _errors_table(record: RunRecord) -> str:
    """Errors of all sets, before and after."""
    rows = []
    for frames in record.frames:
        if not len(frames.counts):
            continue
        before, after = set_errors(frames, BEFORE), set_errors(frames, AFTER)
        name = f"{long_name(frames)}, {len(frames.counts)} structures"
        if len(frames.counts) < frames.available:
            name += f" of {frames.available}"
        for key, measure, form in _MEASURES:
            was, now = getattr(before, key), getattr(after, key)
            if math.isfinite(was) or math.isfinite(now):
                rows.append((name, measure, in_form(was, form), in_form(now, form), in_form(now - was, f"+{form}")))
    if not rows:
        return ""
    content = table(("set", "measure", "before", "after", "change"), rows, "wide")
    return folded("All errors, before and after", f"{content}<p><small>{text(_ERRORS_NOTE)}</small></p>")


_ERRORS_NOTE = (
    "Mean absolute errors; of forces and stress, of their components. After the best offsets: one constant per element "
    "is fitted to the errors of the set, before and after each for itself, as another code may differ by."
)


def _lead(record: RunRecord) -> str:
    epochs = len(record.history)
    parts = [f"{epochs} epoch{'' if epochs == 1 else 's'}"]
    parts += [str(record.metadata[key]) for key in ("split", "split_relaxations") if record.metadata.get(key)]
    return "; ".join(parts)


def _run_section(record: RunRecord, defaults: Mapping[str, Any]) -> str:
    metadata = record.metadata
    config = flat(metadata.get("config") or {})
    usual = flat(defaults)
    fisher = flat(metadata.get("fisher") or {})
    facts = {
        "model": metadata.get("base_model"),
        "head": metadata.get("head"),
        "method": method(record),
        "processes": metadata.get("processes"),
        **{f"machine: {name}": value for name, value in flat(metadata.get("machine") or {}).items()},
        "frames": metadata.get("split"),
        "relaxations": metadata.get("split_relaxations"),
        "frozen": ", ".join(map(str, metadata.get("frozen") or [])) or None,
        **{f"Fisher information: {name}": value for name, value in fisher.items() if "hash" not in name},
    }
    content = page.pairs_table({name: value for name, value in facts.items() if value is not None})
    content += _rounds(metadata) + _offsets(metadata)
    changed = {name: value for name, value in config.items() if name not in usual or usual[name] != value}
    if usual:
        content += "<h3>Options that differ from the defaults</h3>"
        content += page.pairs_table(changed) if changed else "<p>None.</p>"
    if config:
        content += folded("All options", page.pairs_table(config))
    if metadata.get("versions"):
        content += folded("Versions", page.pairs_table(metadata["versions"]))
    checksums = {
        "weights of the model": metadata.get("base_hash"),
        **{f"data: {name}": digest for name, digest in (metadata.get("data") or {}).items()},
        **{f"Fisher information: {name}": value for name, value in fisher.items() if "hash" in name},
    }
    if any(checksums.values()):
        content += folded("For the record: checksums", page.pairs_table(checksums))
    if record.log:
        content += folded("Log", f"<pre>{text(chr(10).join(map(str, record.log)))}</pre>")
    return content


def _rounds(metadata: Mapping[str, Any]) -> str:
    """What each round began with, was trained on and kept, where there were several."""
    rounds = metadata.get("rounds") or []
    if len(rounds) < 2:
        return ""
    rows = []
    for number, item in enumerate(rounds, 1):
        train = item.get("train")
        frames = train.get("frames") if isinstance(train, Mapping) else None
        rows.append((number, page.value(item.get("model")), page.value(frames), page.value(item.get("kept"))))
    return f"<h3>Rounds</h3>{table(('round', 'began with', 'frames', 'kept'), rows)}"


def _offsets(metadata: Mapping[str, Any]) -> str:
    """Reference energies that were fitted, as a table."""
    for key, words in (
        ("reference_offsets", "Taken off the labels, so that the model keeps its own reference; eV per atom."),
        ("shifted_by", "Added to the model's own energies; eV per atom."),
    ):
        if metadata.get(key):
            rows = [(symbol, f"{float(value):+.4f}") for symbol, value in metadata[key].items()]
            return f"<h3>Reference energies</h3><p>{text(words)}</p>{table(('element', 'eV/atom'), rows)}"
    return ""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
