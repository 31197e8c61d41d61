"""Numbers to be seen first, and what to say about a change."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ase_finetune.reporting.forgetting import Forgotten
from ase_finetune.reporting.measures import (
    judged_energies,
    lost,
    mean,
    median,
    percent,
    set_errors,
)
from ase_finetune.reporting.record import AFTER, BEFORE, FrameRecord, PairRecord
from ase_finetune.reporting.relaxations import comparable
from ase_finetune.reporting.sets import is_trained_on, long_name
from ase_finetune.reporting.uncertainty import (
    UNKNOWN,
    Interval,
    energy_interval,
    forces_interval,
    is_unclear,
    median_interval,
    stress_interval,
)

# Changes by less (per cent) are none.
_NO_CHANGE = 1.0

# Per cent; a rise beyond comes from an error that was small by luck, and a headline shows the errors instead.
_MANY_TIMES = 200.0

# From there on numbers are written with powers of ten.
_OFF_THE_SCALE = 1e5

#: meV/atom and meV/Å (and kbar for the stress); a change in per cent of less than that is one of rounding.
ROUNDING = 0.1

_ROUNDING_OF_STRESS = 1e-3

# Of Delta Q in Å √amu, RMSD in Å, strain.
_ROUNDING_OF_PAIRS = {"delta_q": 1e-3, "rmsd": 1e-4, "strain": 1e-4}

#: What is said about the frames that the weights were fitted to.
TRAINED_ON = "frames trained on: this says nothing about new ones"


@dataclass(frozen=True)
class Tile:
    """A number to be seen first.

    Attributes
    ----------
    title, text, note
        What it is, the number, and its change.
    tone
        ``"better"``, ``"worse"`` or ``""``.
    brief
        The change as part of a headline; empty where it does not belong there.
    """

    title: str
    text: str
    note: str
    tone: str
    brief: str = ""


@dataclass(frozen=True)
class Change:
    """An error before and after.

    Attributes
    ----------
    was, now
        meV/Å, meV/atom or kbar; NaN if not known.
    interval
        95 % of its change in per cent; NaN if not known.
    """

    was: float
    now: float
    interval: Interval = UNKNOWN


def force_change(frames: FrameRecord) -> Change:
    """Of the mean absolute force error, meV/Å."""
    before, after = set_errors(frames, BEFORE), set_errors(frames, AFTER)
    return Change(before.forces, after.forces, forces_interval(frames))


def energy_change(frames: FrameRecord) -> Change:
    """Of the mean absolute energy error that means something, meV/atom."""
    before, after, _ = judged_energies(frames)
    return Change(1e3 * mean(before), 1e3 * mean(after), energy_interval(frames))


def stress_change(frames: FrameRecord) -> Change:
    """Of the mean absolute stress error, kbar."""
    before, after = set_errors(frames, BEFORE), set_errors(frames, AFTER)
    return Change(before.stress, after.stress, stress_interval(frames))


def energy_name(frames: FrameRecord, *, fitted: bool = False) -> str:
    """What :func:`energy_change` is of; ``fitted``: whether the run took fitted offsets off the labels."""
    if not frames.other_reference:
        return "energy error after the fitted offsets" if fitted else "energy error"
    if judged_energies(frames)[2]:
        return "energy error after the best offsets per element"
    return "energy error against labels of perhaps another reference"


def frame_tiles(frames: FrameRecord, *, fitted: bool = False) -> list[Tile]:
    """Errors of a set.

    Parameters
    ----------
    frames
        With labels of a reference.
    fitted
        Whether the run took fitted reference energies off the labels.
    """
    name = long_name(frames)
    found = []
    for what, brief, title, unit, change in (
        ("forces", "forces", "force error", "meV/Å", force_change(frames)),
        ("energy", "energies", energy_name(frames, fitted=fitted), "meV/atom", energy_change(frames)),
        ("stress", "stress", "stress error", "kbar", stress_change(frames)),
    ):
        gone = lost(frames, what)
        if math.isfinite(change.now):
            found.append(_tile(f"{name}: {title}", brief, unit, change, frames, gone))
        elif gone:
            words = f"{brief} not finite"
            found.append(Tile(f"{name}: {title}", "not finite", "predictions were lost by training", "worse", words))
    return found


def _tile(title: str, what: str, unit: str, change: Change, frames: FrameRecord, gone: bool) -> Tile:
    text = f"{digits(change.was)} → {digits(change.now)} {unit}"
    rounding = _ROUNDING_OF_STRESS if unit == "kbar" else ROUNDING
    note, tone = change_note(change, rounding)
    brief = _brief(what, change, unit, rounding)
    if is_trained_on(frames):
        note, tone = f"{note}; says nothing about new ones".removeprefix("; "), ""
    if gone:
        note, tone = f"{note}; some predictions are no longer finite".removeprefix("; "), "worse"
    return Tile(title, text, note, tone, brief)


def _brief(what: str, change: Change, unit: str, rounding: float) -> str:
    """A change in a few words: forces −11 %."""
    if not (change.was >= rounding and percent(change.was, change.now) < _MANY_TIMES):
        return f"{what} {digits(change.was)} → {digits(change.now)}{f' {unit}' if unit else ''}"
    if _is_unchanged(change):
        return f"{what} as before"
    words = f"{what} {signed(percent(change.was, change.now))}\N{NO-BREAK SPACE}%"
    return f"{words} (unclear)" if is_unclear(change.interval) else words


def forgotten_tile(found: Forgotten) -> Tile:
    """What was forgotten, as a word and in per cent."""
    what = "error on old structures" if found.labelled else "error on old structures, estimated"
    text = f"{found.word}: {rise(found.percent)}"
    scale = "" if found.labelled else "beside typical errors of universal potentials; "
    allowed = f"up to {found.bound:.3g}\N{NO-BREAK SPACE}% was allowed" if found.bound >= 0 else "no bound was set"
    return Tile(
        f"forgotten: {what}", text, f"{scale}{allowed}", {"negligible": "better", "large": "worse"}.get(found.word, "")
    )


def rise(value: float) -> str:
    """A rise in per cent, with a decimal where it is small."""
    if math.isinf(value):
        return "predictions are not finite"
    words = signed(value) if abs(value) >= 9.95 else f"{value:+.1f}".replace("-", "−")
    words = "0" if abs(value) < 0.05 else words
    return f"{words}\N{NO-BREAK SPACE}%"


def change_note(change: Change, rounding: float = ROUNDING) -> tuple[str, str]:
    """What to say about a change, and its tone.

    Parameters
    ----------
    change
        Before and after.
    rounding
        Of the values: from less than that there is no change in per cent.
    """
    if not (math.isfinite(change.was) and math.isfinite(change.now)):
        return "", ""
    if change.was < rounding:
        return "", "worse" if change.now > change.was + rounding else ""
    if _is_unchanged(change):
        return "unchanged", ""
    found = percent(change.was, change.now)
    words = f"{signed(found)}\N{NO-BREAK SPACE}%"
    if not all(map(math.isfinite, change.interval)):
        return words, "better" if found < 0 else "worse"
    low, high = map(signed, change.interval)
    words += f" ({low} to {high}\N{NO-BREAK SPACE}%)"
    if is_unclear(change.interval):
        return f"unclear: {words}", ""
    return words, "better" if found < 0 else "worse"


def _is_unchanged(change: Change) -> bool:
    return abs(percent(change.was, change.now)) < _NO_CHANGE


def signed(value: float) -> str:
    """A whole number with its sign."""
    return f"{value:+.0f}".replace("-", "−") if abs(value) < 1e4 else f"{'+' if value > 0 else '−'}{digits(abs(value))}"


def digits(value: float) -> str:
    """Three significant digits of an error, none of them for show; powers of ten where it is off the scale."""
    if math.isnan(value):
        return "–"
    if abs(value) >= _OFF_THE_SCALE:
        lead, exponent = f"{value:.1e}".split("e")
        return f"{lead}·10{str(int(exponent)).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def in_form(value: float, form: str) -> str:
    """A number in a format; a dash if it is not finite, and powers of ten where it is off the scale."""
    if not math.isfinite(value):
        return "–"
    if abs(value) < _OFF_THE_SCALE:
        return format(value, form)
    return f"{'+' if form.startswith('+') and value > 0 else ''}{digits(value)}"


def moved(change: Change, unit: str) -> str:
    """A change as part of a sentence."""
    if not change.was >= ROUNDING:
        return f"is {digits(change.now)} {unit}, from {digits(change.was)}"
    if _is_unchanged(change):
        return f"stayed at {digits(change.now)} {unit}"
    words = f"{'fell' if change.now < change.was else 'rose'} from {digits(change.was)} to {digits(change.now)} {unit}"
    return f"{words}, which may be chance," if is_unclear(change.interval) else words


def pair_tiles(pairs: PairRecord) -> list[Tile]:
    """Medians over the same pairs before and after, and how many end in the right minimum."""
    found = comparable(pairs)
    total = len(pairs.descriptions)
    tone = "better" if found.right_after > found.right_before else "worse"
    note = f"{signed(found.right_after - found.right_before)} pairs"
    if found.right_after == found.right_before:
        note, tone = "unchanged", ""
    text = f"{found.right_before} → {found.right_after} of {total}"
    brief = f"{text} relaxations in the right minimum"
    tiles = [Tile("relaxations: in the right minimum", text, note, tone, brief)]
    for name, title, unit in (("delta_q", "Delta Q", "Å √amu"), ("rmsd", "RMSD", "Å"), ("strain", "cell strain", "")):
        before, after = found.values(name)
        if not len(before):
            continue
        change = Change(median(before), median(after), median_interval(before, after))
        text = f"{change.was:.3g} → {change.now:.3g} {unit}".rstrip()
        heading = f"relaxations {found.which}: median {title}"
        rounding = _ROUNDING_OF_PAIRS[name]
        brief = "" if name == "rmsd" else _brief(title, change, unit, rounding)  # Delta Q says nearly the same
        tiles.append(Tile(heading, text, *change_note(change, rounding), brief))
    return tiles
