"""What a run is going to train on, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ase.data import chemical_symbols

from ase_finetune.data.frames import FrameSet
from ase_finetune.data.labels import LABELS

_HEADER = ("set", "frames", "atoms", *LABELS, "elements")
_MAX_ELEMENTS = 12


def data_report(sets: Mapping[str, FrameSet], replay_elements: set[int] | None = None) -> str:
    """Table of frames, atoms, labels and elements of each set.

    Parameters
    ----------
    sets
        In the order of the table, by the name to print. The elements of one called "replay" are not
        counted among the target's.
    replay_elements
        Atomic numbers of the replay structures; their coverage of the target's elements is reported.
        Taken from the set called "replay" if there is one.
    """
    rows = [_HEADER, *(_row(name, frames) for name, frames in sets.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for name, frames in sets.items():
        if frames.label_sources:
            origins = (f"{label} from {source}" for label, source in frames.label_sources.items())
            lines.append(f"{name}: {'; '.join(origins)}")
        lines += [f"{name}: {note}" for note in frames.notes]
    if replay_elements is None and "replay" in sets:
        replay_elements = set(sets["replay"].elements)
    if replay_elements is not None:
        wanted = {z for name, frames in sets.items() if name != "replay" for z in frames.elements}
        lines.append(_coverage(wanted, replay_elements))
    return "\n".join(lines)


def listed(items: Iterable[str]) -> str:
    """The first dozen of some names, separated by commas, and dots where there are more."""
    names = list(items)
    return ", ".join(names[:_MAX_ELEMENTS]) + (" ..." if len(names) > _MAX_ELEMENTS else "")


def _row(name: str, frames: FrameSet) -> tuple[str, ...]:
    sizes = frames.sizes or [0]
    atoms = str(min(sizes)) if min(sizes) == max(sizes) else f"{min(sizes)}-{max(sizes)}"
    counts = frames.num_labels
    labels = (str(counts[label]) if counts[label] else "-" for label in LABELS)
    return (name, str(len(frames)), atoms, *labels, _symbols(frames.elements))


def _symbols(numbers: tuple[int, ...]) -> str:
    if len(numbers) > _MAX_ELEMENTS:
        return f"{len(numbers)} elements"
    return " ".join(chemical_symbols[z] for z in numbers)


def _coverage(wanted: set[int], replay: set[int]) -> str:
    missing = sorted(wanted - replay)
    text = f"{len(wanted) - len(missing)} of {len(wanted)} target elements occur in the replay set"
    if not missing:
        return text
    return f"{text}; {listed(chemical_symbols[z] for z in missing)} missing"
