"""Training and validation pairs that have nothing in common."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from ase_finetune.data.groups import trajectory_groups
from ase_finetune.data.pairs import PairSet
from ase_finetune.data.splits import hold_out
from ase_finetune.errors import DataError

# Initial structures whose positions and cells differ by no more than this are the same (Å).
_SAME = 1e-4


def split_pairs(pairs: PairSet, valid: float | int, *, seed: int = 0) -> tuple[PairSet, PairSet, str]:
    """Split into training and validation pairs that share no reduced formula.

    All pairs of a formula go to the same set: polymorphs that relax to the same structure would make
    validation say nothing. Formulas are drawn at random until their pairs come as close as they can to
    the number wanted. With a single formula, or where even the smallest has more than twice the pairs
    wanted, trajectories are kept apart instead, as :func:`split_frames` does, and the text says so.

    Parameters
    ----------
    pairs
        At least two.
    valid
        Fraction of the pairs (a float between 0 and 1) or their number (an int).
    seed
        Number of the fold, from 0: other seeds hold out other formulas while there are enough (see
        :func:`hold_out`).

    Returns
    -------
    train, valid
        In the order they had; the second is named "valid".
    text
        How the split was made.

    Raises
    ------
    InputError
        If ``valid`` leaves one of the sets empty.
    """
    formulas = [_reduced_formula(pair.initial) for pair in pairs]
    rest, picked, _ = hold_out(formulas, valid, seed=seed, name=pairs.name, noun="pairs")
    chosen = {formulas[index] for index in picked}
    how = f"{len(chosen)} of {len(set(formulas))} reduced formulas, none of them in both sets"
    if chosen & {formulas[index] for index in rest}:
        groups = trajectory_groups([pair.initial for pair in pairs], [pair.source for pair in pairs])
        rest, picked, _ = hold_out(groups, valid, seed=seed, name=pairs.name, noun="pairs")
        both = {formulas[index] for index in picked} & {formulas[index] for index in rest}
        listed = ", ".join(sorted(both)[:3]) + (" ..." if len(both) > 3 else "")
        how = f"too few formulas to keep them apart, so both sets have {listed}"
    text = f"validation: {len(picked)} of {len(pairs)} pairs of {pairs.name}, {how}"
    return pairs.select(rest), pairs.select(picked, name="valid"), text


def check_disjoint_pairs(train: PairSet, valid: PairSet) -> None:
    """Refuse sets that share initial structures (same atoms; cell and positions within 1e-4 Å).

    Parameters
    ----------
    train, valid
        As :func:`read_pairs` gives them.

    Raises
    ------
    DataError
        Naming the pairs of both sets.
    """
    known: dict[bytes, list[int]] = {}
    for position, pair in enumerate(train):
        known.setdefault(_atoms_key(pair.initial), []).append(position)
    shared = []
    for position, pair in enumerate(valid):
        alike = known.get(_atoms_key(pair.initial), [])
        shared += [(other, position) for other in alike if _same(train[other].initial, pair.initial)][:1]
    if shared:
        named = "; ".join(f"{valid.describe(b)} is {train.describe(a)}" for a, b in shared[:5])
        more = f"; and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise DataError(f"{train.name} and {valid.name} share {len(shared)} initial structures: {named}{more}")


def _reduced_formula(atoms: Atoms) -> str:
    return str(atoms.symbols.formula.reduce()[0].format("hill"))


def _atoms_key(atoms: Atoms) -> bytes:
    return bytes(np.asarray(atoms.numbers, dtype=np.int64).tobytes() + np.asarray(atoms.pbc, dtype=bool).tobytes())


def _same(one: Atoms, other: Atoms) -> bool:
    far = max(np.abs(one.positions - other.positions).max(), np.abs(one.cell[:] - other.cell[:]).max())
    return bool(far <= _SAME)
