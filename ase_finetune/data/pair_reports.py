"""What training through relaxations is going to train on, in words."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols

from ase_finetune.data.pair_checks import moved, same_cell
from ase_finetune.data.pairs import PairSet

_MAX_ELEMENTS = 12


def pair_report(pairs: PairSet) -> str:
    """What a set of pairs holds, in a few lines: sizes, elements, changes from initial to relaxed, energies.

    Parameters
    ----------
    pairs
        As :func:`read_pairs` gives them.
    """
    if not len(pairs):
        return f"{pairs.name}: no pairs"
    sizes = [len(pair.initial) for pair in pairs]
    atoms = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)}-{max(sizes)}"
    furthest = [float(np.linalg.norm(moved(pair.initial, pair.relaxed), axis=1).max()) for pair in pairs]
    fixed = sum(same_cell(pair.initial, pair.relaxed) for pair in pairs)
    energies = f"{pairs.num_energies} with energies"
    lines = [
        f"{pairs.name}: {len(pairs)} pairs of {atoms} atoms, {_symbols(pairs.elements)}; {energies}",
        f"furthest atom moves {np.median(furthest):.2f} Å (median), {min(furthest):.2f} to {max(furthest):.2f} Å",
        f"{fixed} of {len(pairs)} keep their cell{_volume_changes(pairs)}",
    ]
    constrained = sum(bool(pair.initial.constraints) for pair in pairs)
    if constrained:
        lines.append(f"{constrained} of {len(pairs)} have constraints")
    return "\n".join([*lines, *pairs.notes])


def _volume_changes(pairs: PairSet) -> str:
    volumes = [(pair.initial.cell.volume, pair.relaxed.cell.volume) for pair in pairs]
    changes = [100 * (after / before - 1) for before, after in volumes if before > 0 and after > 0]
    if not changes:
        return ""
    return f"; volumes change by {np.median(changes):+.1f} % (median), {min(changes):+.1f} to {max(changes):+.1f} %"


def _symbols(numbers: tuple[int, ...]) -> str:
    if len(numbers) > _MAX_ELEMENTS:
        return f"{len(numbers)} elements"
    return " ".join(chemical_symbols[z] for z in numbers)
