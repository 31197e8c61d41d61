"""What the sets of a record stand for."""

from __future__ import annotations

import hashlib
import re

from ase_finetune.reporting.record import FrameRecord, RunRecord

TARGET = "valid"
REPLAY = "replay"
TRAIN = "train"
#: Old structures with labels of the reference method, where the replay set has labels of the pretrained model.
OLD = "old"

#: Names of the sets of a run, which others cannot have.
RESERVED = (TARGET, REPLAY, TRAIN, OLD)


def is_target(frames: FrameRecord) -> bool:
    """Whether it is held-out data of what was trained for."""
    return frames.name == TARGET


def is_trained_on(frames: FrameRecord) -> bool:
    """Whether these are the training frames, which tell nothing about new ones."""
    return frames.name == TRAIN


def target(record: RunRecord) -> FrameRecord | None:
    """The validation frames, if there are any."""
    return next((frames for frames in record.frames if is_target(frames) and len(frames.counts)), None)


def trained_on(record: RunRecord) -> list[FrameRecord]:
    """The training frames, where a run without validation kept them."""
    return [frames for frames in record.frames if is_trained_on(frames) and len(frames.counts)]


def kept(record: RunRecord) -> list[FrameRecord]:
    """The sets that show what was kept or forgotten: first those that the run watched, labelled ones before others."""
    others = (frames for frames in record.frames if not is_target(frames) and not is_trained_on(frames))
    return sorted((frames for frames in others if len(frames.counts)), key=_order)


def _order(frames: FrameRecord) -> int:
    return (OLD, REPLAY).index(frames.name) if is_watched(frames) else 2


def is_watched(frames: FrameRecord) -> bool:
    """Whether the run watched these old structures, as against test sets that were added later."""
    return frames.name in (OLD, REPLAY)


def long_name(frames: FrameRecord) -> str:
    """In headings."""
    if is_target(frames):
        return "target (validation)"
    if frames.name == OLD:
        return "old structures with DFT labels"
    if frames.name == REPLAY:
        return "old structures (replay)"
    if is_trained_on(frames):
        return "frames trained on"
    return frames.name


def at_the_start(frames: FrameRecord) -> str:
    """At the beginning of a sentence; names of files stay as they are."""
    name = long_name(frames)
    return name if name == frames.name else name[0].upper() + name[1:]


def color_of(frames: FrameRecord) -> str:
    """In charts."""
    return "target" if is_target(frames) else "third" if is_trained_on(frames) else "kept"


def remark(frames: FrameRecord) -> str:
    """What captions add about a set: its role, and whether it is a sample."""
    role = " These are frames trained on: this says nothing about new ones." if is_trained_on(frames) else ""
    if len(frames.counts) >= frames.available:
        return role
    return f"{role} A sample of {len(frames.counts)} of {frames.available} structures."


def anchor(frames: FrameRecord) -> str:
    """Part of file names and anchors."""
    return as_anchor(frames.name)


def as_anchor(name: str) -> str:
    """A name without special characters, another one for every name."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    if text == name:
        return text
    return f"{text or 'set'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"
