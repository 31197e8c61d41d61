"""What training has and validation has not, so that it cannot be judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ase.data import chemical_symbols

from ase_finetune.data.frames import FrameSet
from ase_finetune.data.labels import LABELS
from ase_finetune.data.pairs import PairSet
from ase_finetune.data.report import listed


def split_notes(train: FrameSet, valid: FrameSet, trained_on: Iterable[str] = LABELS) -> list[str]:
    """Remarks on labels, elements and kinds of structure (``config_type``) that only one of two sets has.

    Elements and kinds of a single training frame are not missed: it cannot be in both sets.

    Parameters
    ----------
    train, valid
        As :func:`split_frames` or :func:`read_frames` gives them.
    trained_on
        Those of :data:`LABELS` that the loss has a weight for.
    """
    ours, theirs = train.num_labels, valid.num_labels
    notes = [
        f"no validation frame has {label}, which {'are' if label == 'forces' else 'is'} trained on"
        for label in trained_on
        if ours[label] and not theirs[label]
    ]
    return [
        *notes,
        *_element_notes(_frame_elements(train), _frame_elements(valid), "frame"),
        *_kind_notes(train, valid),
    ]


def pair_split_notes(train: PairSet, valid: PairSet) -> list[str]:
    """Remarks on elements that only one of two sets of pairs has.

    Parameters
    ----------
    train, valid
        As :func:`split_pairs` or :func:`read_pairs` gives them.
    """
    return _element_notes(_pair_elements(train), _pair_elements(valid), "pair")


def _frame_elements(frames: FrameSet) -> Counter[int]:
    """How many frames have each element."""
    return Counter(z for summary in frames.summaries for z in summary.elements)


def _pair_elements(pairs: PairSet) -> Counter[int]:
    return Counter(int(z) for pair in pairs for z in set(pair.initial.numbers))


def _element_notes(train: Counter[int], valid: Counter[int], noun: str) -> list[str]:
    missing = [f"{chemical_symbols[z]} ({train[z]})" for z in sorted(train) if train[z] > 1 and z not in valid]
    unknown = [chemical_symbols[z] for z in sorted(valid) if z not in train]
    notes = []
    if missing:
        notes.append(f"no validation {noun} has these elements of training {noun}s: {listed(missing)}")
    if unknown:
        notes.append(f"validation has elements that no training {noun} has: {listed(unknown)}")
    return notes


def _kind_notes(train: FrameSet, valid: FrameSet) -> list[str]:
    ours, theirs = (Counter(summary.kind for summary in part.summaries) for part in (train, valid))
    if set(theirs) == {""} and "" not in ours:
        # The validation file does without the key, so nothing is known of its kinds.
        return []
    missing = [f"'{kind}' ({count})" for kind, count in ours.items() if kind and count > 1 and kind not in theirs]
    return (
        [f"no validation frame is of a config_type that training frames are of: {listed(missing)}"] if missing else []
    )
