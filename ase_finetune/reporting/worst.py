"""Where a result is worst, by name: an element, structures, relaxations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from ase_finetune.reporting.measures import element_errors, formatted, judged_energies, number, structure_forces
from ase_finetune.reporting.record import AFTER, BEFORE, FrameRecord, PairRecord
from ase_finetune.reporting.tiles import digits

#: Structures that are named.
MOST = 3


@dataclass(frozen=True)
class Worst:
    """A short list, the worst first.

    Attributes
    ----------
    heads
        Of the columns: what it is, before, after.
    rows
        A name, and errors before and after.
    """

    heads: tuple[str, str, str]
    rows: list[tuple[str, str, str]]


def worst_structures(frames: FrameRecord, most: int) -> tuple[str, list[tuple[int, float, float]]]:
    """The structures with the largest errors after training, of the forces where there are any.

    Returns
    -------
    what, structures
        ``"forces"`` or ``"energy"``; position, and errors before and after (meV/Å or meV/atom), the worst first.
    """
    (before, numbers), (after, _) = (structure_forces(frames, when) for when in (BEFORE, AFTER))
    what, known = "forces", numbers > 0
    if known.any():
        before, after = before / np.maximum(numbers, 1), after / np.maximum(numbers, 1)
    else:
        what, (before, after, _) = "energy", judged_energies(frames)
        known = np.isfinite(before) & np.isfinite(after)
    chosen = np.flatnonzero(known)
    worst = chosen[np.argsort(-after[chosen], kind="stable")][:most]
    return what, [(int(k), 1e3 * float(before[k]), 1e3 * float(after[k])) for k in worst]


def worst_frames(frames: FrameRecord) -> Worst | None:
    """The worst element of a set with several, and its worst structures; ``None`` without labels."""
    what, structures = worst_structures(frames, MOST)
    if not structures:
        return None
    heads = ("force MAE, meV/Å" if what == "forces" else "energy error, meV/atom", "before", "after")
    rows = [(frames.descriptions[k], digits(before), digits(after)) for k, before, after in structures]
    return Worst(heads, [*_worst_element(frames), *rows])


def _worst_element(frames: FrameRecord) -> list[tuple[str, str, str]]:
    found = element_errors(frames)
    if len(found) < 2:
        return []
    z, error = max(found.items(), key=lambda item: item[1].after)
    name = f"element {chemical_symbols[z]} ({error.atoms} of {len(frames.numbers)} atoms)"
    return [(name, digits(error.before), digits(error.after))]


def worst_pairs(pairs: PairRecord) -> Worst | None:
    """The relaxations that end farthest from the reference; those that failed come first."""
    far = [number(error.get("delta_q")) for error in pairs.after]
    order = sorted(range(len(far)), key=lambda k: -(math.inf if math.isnan(far[k]) else far[k]))[:MOST]
    if not order:
        return None
    rows = [(pairs.descriptions[k], _end(pairs, k, BEFORE), _end(pairs, k, AFTER)) for k in order]
    return Worst(("Delta Q, Å √amu", "before", "after"), rows)


def _end(pairs: PairRecord, k: int, when: int) -> str:
    error = (pairs.before if when == BEFORE else pairs.after)[k]
    return "failed" if error.get("failure") else formatted(number(error.get("delta_q")), ".3g")
