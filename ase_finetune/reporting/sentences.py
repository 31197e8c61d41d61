"""What happened to each set, in sentences, beside the numbers of the tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping

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
from ase_finetune.reporting.sets import at_the_start, is_target, is_trained_on, long_name
from ase_finetune.reporting.stages import Stage
from ase_finetune.reporting.tiles import (
    TRAINED_ON,
    digits,
    energy_change,
    energy_name,
    force_change,
    in_form,
    moved,
)

#: Fewer structures than that do not decide much.
FEW = 10

# meV/atom
_NO_DRIFT = 1e-2


def weights(stage: Stage) -> str:
    """Which weights a stage ended with, in the words of the run where it has any."""
    if stage.kept.sentence:
        return f"Training on {stage.title}: {stage.kept.sentence.removesuffix('.')}."
    if not stage.best_epoch or not stage.rows:
        return ""
    return f"Training on {stage.title}: the weights of epoch {stage.best_epoch} of {len(stage.rows)} were kept."


def of_frames(frames: FrameRecord) -> str:
    """What happened to a set; how far predictions moved where the labels are the pretrained model's own."""
    return _drift(frames, set_errors(frames, AFTER)) if frames.own_labels else _change(frames)


def warnings(frames: FrameRecord) -> list[str]:
    """What to bear in mind about a set."""
    name, found = long_name(frames), []
    if len(frames.counts) < FEW and not is_target(frames):
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
    if most is not None and not is_target(frames):
        found.append(
            f"One structure makes more than half of the {most[1]} error of the set {name}: "
            f"{frames.descriptions[most[0]]}. Look at it and at its labels."
        )
    return found


def _change(frames: FrameRecord) -> str:
    """The errors (the tiles have those of the target), how many structures improved, and whether forces are soft."""
    before, after = set_errors(frames, BEFORE), set_errors(frames, AFTER)
    improved, known, what = structures_that_improved(frames)
    parts = [] if is_target(frames) else _errors(frames)
    if known:
        parts.append(f"the {what} errors of {improved} of {known} structures became smaller")
    offset = "" if frames.other_reference else _offset(before, after)
    slope = _slope(before.slope, after.slope) if math.isfinite(before.slope) and math.isfinite(after.slope) else ""
    role = f"These are {TRAINED_ON}." if is_trained_on(frames) else ""
    first = f"{at_the_start(frames)}: {'; '.join(parts)}." if parts else ""
    return " ".join(filter(None, [first, offset, slope, role]))


def _errors(frames: FrameRecord) -> list[str]:
    forces, energy = force_change(frames), energy_change(frames)
    parts = []
    if math.isfinite(forces.now):
        parts.append(f"the mean absolute force error {moved(forces, 'meV/Å')}")
    if math.isfinite(energy.now):
        parts.append(f"the {energy_name(frames)} {moved(energy, 'meV/atom')}")
    return [part.removesuffix(",") for part in parts]


def _offset(before: SetErrors, after: SetErrors) -> str:
    """Whether the energies are only off by a constant for each element, which matters to few properties."""
    if not after.aligned < 0.7 * after.energy:
        return ""
    return (
        f"With the best offset per element its energy error would go from {digits(before.aligned)} to "
        f"{digits(after.aligned)} meV/atom."
    )


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


def of_pairs(pairs: PairRecord) -> str:
    """How many relaxations end closer to the reference, and in the right minimum."""
    before, after = outcome(pairs.before), outcome(pairs.after)
    closer = sum(_smaller(was, now) for was, now in zip(pairs.before, pairs.after, strict=True))
    return (
        f"Relaxations: of {after['total']:.0f} validation pairs, {closer} end closer to the reference "
        f"(Delta Q) than before; {after['right_basin']:.0f} end in the right minimum, "
        f"{before['right_basin']:.0f} before training."
    )


def pair_warnings(pairs: PairRecord) -> list[str]:
    """Relaxations that failed."""
    before, after = outcome(pairs.before), outcome(pairs.after)
    if not (after["failed"] or before["failed"]):
        return []
    return [
        f"{after['failed']:.0f} of {after['total']:.0f} relaxations failed, {before['failed']:.0f} before training."
    ]


def _smaller(was: Mapping[str, object], now: Mapping[str, object]) -> bool:
    before, after = was.get("delta_q"), now.get("delta_q")
    return isinstance(before, float) and isinstance(after, float) and after < before


def skipped(record: RunRecord) -> list[str]:
    """Steps and rollouts that were left out."""
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
