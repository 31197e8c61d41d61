"""What a run gained and what it forgot, in plain words and numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ase_finetune.reporting.measures import (
    SetErrors,
    column,
    is_nothing,
    not_finite,
    set_errors,
    structures_that_improved,
)
from ase_finetune.reporting.record import AFTER, BEFORE, FrameRecord, PairRecord, RunRecord
from ase_finetune.reporting.relaxations import outcome
from ase_finetune.reporting.sets import at_the_start, kept, long_name, target
from ase_finetune.reporting.stages import Stage, stages

# Fewer structures than that do not decide much.
_FEW = 10

# meV/atom
_NO_DRIFT = 1e-2

# Changes by less (per cent) are none.
_NO_CHANGE = 1.0


@dataclass(frozen=True)
class Tile:
    """A number to be seen first.

    Attributes
    ----------
    title, text, note
        What it is, the number, and its change.
    tone
        ``"better"``, ``"worse"`` or ``""``.
    """

    title: str
    text: str
    note: str
    tone: str


@dataclass
class Verdict:
    """The summary of a run.

    Attributes
    ----------
    tiles
        Numbers to be seen first.
    sentences
        What was gained and forgotten.
    warnings
        What to bear in mind.
    """

    tiles: list[Tile] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def judge(record: RunRecord) -> Verdict:
    """The summary of a run."""
    verdict = Verdict()
    aim = target(record)
    if aim is not None:
        _frames(verdict, aim)
    if record.pairs is not None and record.pairs.descriptions:
        _pairs(verdict, record.pairs)
    if aim is None and (record.pairs is None or not record.pairs.descriptions):
        verdict.warnings.append(
            "There was no validation set: what was gained cannot be told, and the weights of the last epoch were kept."
        )
    for frames in kept(record):
        _frames(verdict, frames)
    if not kept(record):
        verdict.warnings.append("No old structures were watched: what was forgotten cannot be told.")
    for stage in stages(record):
        verdict.warnings += _training_notes(stage)
    verdict.warnings += _skipped_notes(record)
    return verdict


def percent(before: float, after: float) -> float:
    """Change in per cent; NaN from nothing."""
    return 100 * (after / before - 1) if before > 0 else math.nan


def _frames(verdict: Verdict, frames: FrameRecord) -> None:
    before, after = set_errors(frames, BEFORE), set_errors(frames, AFTER)
    name = long_name(frames)
    for title, unit, was, now in (
        ("force error", "meV/Å", before.forces, after.forces),
        ("energy error", "meV/atom", before.energy, after.energy),
    ):
        if math.isfinite(now):
            verdict.tiles.append(_tile(f"{name}: {title}", unit, was, now, frames.own_labels))
    sentence = _drift(frames, after) if frames.own_labels and is_nothing(before.forces) else _change(frames)
    if sentence:
        verdict.sentences.append(sentence)
    if len(frames.counts) < _FEW:
        many = "1 structure" if len(frames.counts) == 1 else f"{len(frames.counts)} structures"
        verdict.warnings.append(f"The set {name} has only {many}: its numbers are uncertain.")
    lost = not_finite(frames)
    if lost:
        verdict.warnings.append(
            f"Predictions after training are not finite for {lost} of {len(frames.counts)} structures of the set "
            f"{name}; they are left out of its errors."
        )


def _tile(title: str, unit: str, was: float, now: float, own_labels: bool) -> Tile:
    if own_labels or not math.isfinite(was):
        small = is_nothing(now)
        note = "as the pretrained model" if small else "away from the pretrained model"
        return Tile(title, f"{digits(now)} {unit}", note if own_labels else "", "")
    change = percent(was, now)
    if not math.isfinite(change):
        return Tile(title, f"{digits(was)} → {digits(now)} {unit}", "", "worse" if now > was else "")
    return Tile(title, f"{digits(was)} → {digits(now)} {unit}", *_change_note(change))


def _change_note(change: float) -> tuple[str, str]:
    """What to say about a change in per cent, and its tone."""
    if not math.isfinite(change):
        return "", ""
    if abs(change) < _NO_CHANGE:
        return "unchanged", ""
    return f"{change:+.0f}\N{NO-BREAK SPACE}%".replace("-", "−"), "better" if change < 0 else "worse"


def digits(value: float) -> str:
    """Three significant digits of an error, none of them for show."""
    if math.isnan(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _moved(was: float, now: float, unit: str) -> str:
    change = percent(was, now)
    if not math.isfinite(change):
        return f"is {digits(now)} {unit}"
    if abs(change) < _NO_CHANGE:
        return f"stayed at {digits(now)} {unit}"
    return f"{'fell' if change < 0 else 'rose'} from {digits(was)} to {digits(now)} {unit}"


def _change(frames: FrameRecord) -> str:
    before, after = set_errors(frames, BEFORE), set_errors(frames, AFTER)
    parts = []
    if math.isfinite(after.forces):
        parts.append(f"the mean absolute force error {_moved(before.forces, after.forces, 'meV/Å')}")
    if math.isfinite(after.energy):
        parts.append(f"the energy error {_moved(before.energy, after.energy, 'meV/atom')}{_offset(before, after)}")
    if not parts:
        return ""
    improved, known = structures_that_improved(frames)
    what = "force" if math.isfinite(after.forces) else "energy"
    count = f"; the {what} errors of {improved} of {known} structures became smaller" if known else ""
    slope = ""
    if math.isfinite(before.slope) and math.isfinite(after.slope):
        slope = f" {_slope(before.slope, after.slope)}"
    return f"{at_the_start(frames)}: {' and '.join(parts)}{count}.{slope}"


def _offset(before: SetErrors, after: SetErrors) -> str:
    """Whether the energies are only off by a constant for each element, which matters to few properties."""
    if not after.aligned < 0.7 * after.energy:
        return ""
    return f" (with the best offset per element from {digits(before.aligned)} to {digits(after.aligned)} meV/atom)"


def _slope(before: float, after: float) -> str:
    def words(slope: float) -> str:
        off = 100 * (slope - 1)
        return "right" if abs(off) < 0.5 else f"{abs(off):.0f}\N{NO-BREAK SPACE}% too {'soft' if off < 0 else 'stiff'}"

    if words(before) == words(after):
        return f"Its forces are {words(after)} on the whole, as before."
    return f"Its forces were {words(before)} on the whole and are {words(after)} now."


def _drift(frames: FrameRecord, after: SetErrors) -> str:
    parts = []
    if is_nothing(after.forces) and not after.energy > _NO_DRIFT:
        return f"{at_the_start(frames)}: predictions are those of the pretrained model."
    if math.isfinite(after.forces):
        parts.append(f"forces moved away from the pretrained model by {digits(after.forces)} meV/Å")
    if math.isfinite(after.energy):
        parts.append(f"energies by {digits(after.energy)} meV/atom")
    if not parts:
        return ""
    return (
        f"{at_the_start(frames)}: {' and '.join(parts)} on average. The labels here are the pretrained "
        "model's own, so errors start at zero; whether a change is for better or worse only reference data can tell."
    )


def _pairs(verdict: Verdict, pairs: PairRecord) -> None:
    before, after = outcome(pairs.before), outcome(pairs.after)
    for name, title, unit in (("delta_q", "Delta Q", "Å √amu"), ("rmsd", "RMSD", "Å"), ("strain", "cell strain", "")):
        if not math.isfinite(after[name]):
            continue
        change = percent(before[name], after[name])
        text = f"{before[name]:.3g} → {after[name]:.3g} {unit}".rstrip()
        verdict.tiles.append(Tile(f"relaxations in the right minimum: median {title}", text, *_change_note(change)))
    closer = sum(_smaller(was, now) for was, now in zip(pairs.before, pairs.after, strict=True))
    verdict.sentences.append(
        f"Relaxations: of {after['total']:.0f} validation pairs, {closer} end closer to the reference "
        f"(Delta Q) than before; {after['right_basin']:.0f} end in the right minimum, "
        f"{before['right_basin']:.0f} before training."
    )
    if after["failed"] or before["failed"]:
        verdict.warnings.append(
            f"{after['failed']:.0f} of {after['total']:.0f} relaxations failed, {before['failed']:.0f} before training."
        )
    if after["total"] < _FEW:
        verdict.warnings.append(f"There are only {after['total']:.0f} validation pairs: their numbers are uncertain.")


def _smaller(was: dict[str, object], now: dict[str, object]) -> bool:
    before, after = was.get("delta_q"), now.get("delta_q")
    return isinstance(before, float) and isinstance(after, float) and after < before


def _training_notes(stage: Stage) -> list[str]:
    done = len(stage.rows)
    if stage.best_epoch is None:
        return [f"Training on {stage.title} did not come to its end."]
    if not done:
        return []
    if stage.best_epoch == 0:
        return [
            f"Training on {stage.title}: no epoch was better than the model it began with, whose weights were kept: "
            "nothing was gained by it. Perhaps the learning rate, the penalty or the weight of replay is too large."
        ]
    judged = any(math.isfinite(value) for value in stage.curve("valid", "loss"))
    if judged and stage.best_epoch >= int(column(stage.rows, "epoch").max()):
        early = f" ({done} of {stage.planned} epochs were run)" if stage.planned and done < stage.planned else ""
        return [f"Training on {stage.title}: the last epoch was the best{early}; more epochs may help."]
    return []


def _skipped_notes(record: RunRecord) -> list[str]:
    notes = []
    steps, rollouts = (
        float(np.nansum(column(record.history, name))) if record.history else 0.0
        for name in ("skipped_steps", "train_skipped")
    )
    if steps:
        notes.append(f"{steps:.0f} steps were skipped because a loss or gradient was not finite; see the log.")
    if rollouts:
        notes.append(f"{rollouts:.0f} rollouts were left out of training; see the log.")
    return notes
