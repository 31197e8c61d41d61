"""What the sets of a record stand for."""

from __future__ import annotations

import hashlib
import re

from ase_finetune.reporting.record import FrameRecord, RunRecord

TARGET = "valid"
REPLAY = "replay"


def is_target(frames: FrameRecord) -> bool:
    """Whether it is what was trained for; other sets show what was kept."""
    return frames.name == TARGET


def target(record: RunRecord) -> FrameRecord | None:
    """The validation frames, if there are any."""
    return next((frames for frames in record.frames if is_target(frames) and len(frames.counts)), None)


def kept(record: RunRecord) -> list[FrameRecord]:
    """The sets that show what was kept or forgotten."""
    return [frames for frames in record.frames if not is_target(frames) and len(frames.counts)]


def long_name(frames: FrameRecord) -> str:
    """In headings."""
    if is_target(frames):
        return "target (validation)"
    if frames.name == REPLAY:
        return "old structures (replay)"
    return frames.name


def at_the_start(frames: FrameRecord) -> str:
    """At the beginning of a sentence; names of files stay as they are."""
    name = long_name(frames)
    return name if name == frames.name else name[0].upper() + name[1:]


def color_of(frames: FrameRecord) -> str:
    """In charts."""
    return "target" if is_target(frames) else "kept"


def anchor(frames: FrameRecord) -> str:
    """Part of file names and anchors."""
    return as_anchor(frames.name)


def as_anchor(name: str) -> str:
    """A name without special characters, another one for every name."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    if text == name:
        return text
    return f"{text or 'set'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"
