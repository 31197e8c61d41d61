"""What a run gained and what it forgot, in plain words and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ase_finetune.reporting.measures import (
    SetErrors,
    column,
    dominant,
    is_nothing,
    not_finite,
    set_errors,
    structures_that_improved,
)
from ase_finetune.reporting.record import AFTER, BEFORE, FrameRecord, PairRecord, RunRecord
from ase_finetune.reporting.relaxations import outcome
from ase_finetune.reporting.sets import at_the_start, is_trained_on, kept, long_name, target, trained_on
from ase_finetune.reporting.stages import Stage, stages
from ase_finetune.reporting.tiles import (
    TRAINED_ON,
    Tile,
    digits,
    energy_change,
    energy_name,
    force_change,
    frame_tiles,
    in_form,
    moved,
    pair_tiles,
)

# Fewer structures than that do not decide much.
_FEW = 10

# meV/atom
_NO_DRIFT = 1e-2

# A validation loss that fell by this share in the last epoch may fall further.
_STILL_FALLING = 0.03


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
    for frames in [*trained_on(record), *kept(record)]:
        _frames(verdict, frames)
    if record.metadata.get("shifted_by"):
        verdict.sentences.append('The errors "before" are those of the model with the shifted reference energies.')
    if not kept(record):
        verdict.warnings.append("No old structures were watched: what was forgotten cannot be told.")
    for stage in stages(record):
        verdict.warnings += _training_notes(stage)
    verdict.warnings += _skipped_notes(record)
    return verdict


def _frames(verdict: Verdict, frames: FrameRecord) -> None:
    verdict.tiles += frame_tiles(frames)
    before, after = set_errors(frames, BEFORE), set_errors(frames, AFTER)
    sentence = _drift(frames, after) if frames.own_labels and is_nothing(before.forces) else _change(frames)
    if sentence:
        verdict.sentences.append(sentence)
    verdict.warnings += _warnings(frames)


def _warnings(frames: FrameRecord) -> list[str]:
    """What to bear in mind about a set."""
    name, found = long_name(frames), []
    if len(frames.counts) < _FEW:
        many = "1 structure" if len(frames.counts) == 1 else f"{len(frames.counts)} structures"
        found.append(f"The set {name} has only {many}: its numbers are uncertain.")
    for when, words in ((AFTER, "after"), (BEFORE, "before")):
        lost = not_finite(frames, when)
        if lost:
            found.append(
                f"Predictions {words} training are not finite for {lost} of {len(frames.counts)} structures of the set "
                f"{name}; they are left out of its errors before and after."
            )
    most = dominant(frames)
    if most is not None:
        found.append(
            f"One structure makes more than half of the {most[1]} error of the set {name}: "
            f"{frames.descriptions[most[0]]}. Look at it and at its labels."
        )
    return found


def _change(frames: FrameRecord) -> str:
    before, after = set_errors(frames, BEFORE), set_errors(frames, AFTER)
    forces, energy = force_change(frames), energy_change(frames)
    parts = []
    if math.isfinite(forces.now):
        parts.append(f"the mean absolute force error {moved(forces, 'meV/Å')}")
    if math.isfinite(energy.now):
        offset = "" if frames.other_reference else _offset(before, after)
        parts.append(f"the {energy_name(frames)} {moved(energy, 'meV/atom')}{offset}")
    if not parts:
        return ""
    improved, known, what = structures_that_improved(frames)
    count = f"; the {what} errors of {improved} of {known} structures became smaller" if known else ""
    slope = ""
    if math.isfinite(before.slope) and math.isfinite(after.slope):
        slope = f" {_slope(before.slope, after.slope)}"
    role = f" These are {TRAINED_ON}." if is_trained_on(frames) else ""
    words = f"{at_the_start(frames)}: {' and '.join(parts)}{count}".removesuffix(",").replace(",;", ";")
    return f"{words}.{slope}{role}"


def _offset(before: SetErrors, after: SetErrors) -> str:
    """Whether the energies are only off by a constant for each element, which matters to few properties."""
    if not after.aligned < 0.7 * after.energy:
        return ""
    return f" (with the best offset per element from {digits(before.aligned)} to {digits(after.aligned)} meV/atom)"


def _slope(before: float, after: float) -> str:
    def words(slope: float) -> str:
        off = 100 * (slope - 1)
        return (
            "right"
            if abs(off) < 0.5
            else f"{in_form(abs(off), '.0f')}\N{NO-BREAK SPACE}% too {'soft' if off < 0 else 'stiff'}"
        )

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
    verdict.tiles += pair_tiles(pairs)
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


def _smaller(was: Mapping[str, object], now: Mapping[str, object]) -> bool:
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
    if _falls(stage) and stage.best_epoch >= int(column(stage.rows, "epoch").max()):
        early = f" ({done} of {stage.planned} epochs were run)" if stage.planned and done < stage.planned else ""
        return [
            f"Training on {stage.title}: the last epoch was the best{early}, and the validation loss still fell; "
            "more epochs may help."
        ]
    return []


def _falls(stage: Stage) -> bool:
    """Whether the validation loss still fell clearly in the last epoch."""
    losses = stage.curve("valid", "loss")
    return len(losses) > 1 and losses[-1] < (1 - _STILL_FALLING) * losses[-2]


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
