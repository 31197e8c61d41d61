"""Pairs of initial and DFT-relaxed structures: which are trained on, and which are held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read

from ase_finetune.data import FrameSet, PairSet, read_frames, read_pairs


def read_sets(data: Path, train: Mapping[str, Any], count: int | None = None, seed: int = 0) -> tuple[PairSet, PairSet]:
    """Pairs to train on and held-out pairs.

    Parameters
    ----------
    data
        Folder of the research data.
    train
        ``set``, one of :data:`SETS`, and its options.
    count
        Pairs to train on, spread evenly over those there are; all if ``None``.
    seed
        Of the run; it chooses the fold where there are folds.
    """
    options = {name: value for name, value in train.items() if name not in ("set", "frames")}
    pairs, held_out = SETS[train["set"]](data, seed=seed, **options)
    count = count or train.get("frames") or len(pairs)
    if count < len(pairs):
        pairs = pairs.select(k * len(pairs) // count for k in range(count))
    return pairs, held_out


def crystals(data: Path, seed: int, held_out: int, most_atoms: int = 1000) -> tuple[PairSet, PairSet]:
    """Zintl crystals; no reduced formula is on both sides. The broad set: 6 to 12 atoms of two dozen elements."""
    del seed
    train, valid = (
        read_pairs([data / f"crystal_pairs_{part}_{end}.extxyz" for end in ("initial", "relaxed")], name=part)
        for part in ("train", "valid")
    )
    train, valid = (_small(pairs, most_atoms) for pairs in (train, valid))
    valid = valid[:held_out]
    taken = {formula(pair.initial) for pair in valid}
    return train.select(k for k, pair in enumerate(train) if formula(pair.initial) not in taken), valid


def phosphates(data: Path, seed: int, folds: int) -> tuple[PairSet, PairSet]:
    """Mg in YPO4, ten relaxations of 13 to 16 atoms. The narrow set; the seed says which formulas are held out."""
    runs = list(_runs(data).items())
    pairs = read_pairs([(path[0], path[-1]) for _, path in runs], name="phosphates")
    fold = folds_by_formula([formula(pair.initial) for pair in pairs], folds)
    own = [k for k, number in enumerate(fold) if number == seed % folds]
    return pairs.select(set(range(len(pairs))) - set(own)), pairs.select(own)


def argyrodites(data: Path, seed: int, held_out: int) -> tuple[PairSet, PairSet]:
    """Li6PS5Cl and Li6PS5I, 416 atoms, at fixed cell."""
    del seed
    ends = [data / f"argyrodite_pairs_train_{end}.extxyz" for end in ("initial", "relaxed")]
    pairs = read_pairs(ends, name="argyrodites")
    own = [k * len(pairs) // held_out for k in range(held_out)]
    return pairs.select(k for k in range(len(pairs)) if k not in own), pairs.select(own)


#: Sets of pairs by name.
SETS: dict[str, Callable[..., tuple[PairSet, PairSet]]] = {
    "crystals": crystals,
    "phosphates": phosphates,
    "argyrodites": argyrodites,
}


def formula(atoms: Atoms) -> str:
    """Reduced formula in Hill's order."""
    reduced, _ = atoms.symbols.formula.reduce()
    return str(reduced.format("hill"))


def folds_by_formula(formulas: Sequence[str], folds: int) -> list[int]:
    """The fold of each pair: all pairs of a formula in one, the largest formulas first, each into the smallest fold."""
    sizes = [0] * folds
    chosen: dict[str, int] = {}
    for name in sorted(set(formulas), key=lambda name: (-formulas.count(name), name)):
        chosen[name] = sizes.index(min(sizes))
        sizes[chosen[name]] += formulas.count(name)
    return [chosen[name] for name in formulas]


def at_rest(pairs: PairSet, *, energies: bool = False) -> list[Atoms]:
    """The DFT minima with their forces, zero, and where cells relax their stress: zero, too.

    With their energies where these are wanted and known.
    """
    cells = any(abs(pair.initial.cell[:] - pair.relaxed.cell[:]).max() > _SAME_CELL for pair in pairs)
    frames = []
    for pair in pairs:
        atoms = pair.relaxed.copy()
        labels: dict[str, Any] = {"forces": np.zeros((len(atoms), 3))} | ({"stress": np.zeros(6)} if cells else {})
        if energies and pair.energy is not None:
            labels["energy"] = pair.energy
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    return frames


def trajectory_frames(data: Path, pairs: PairSet, every: int) -> list[Atoms]:
    """Every so manieth labelled frame of the DFT relaxations of phosphates that these pairs are the ends of."""
    formulas = {formula(pair.initial) for pair in pairs}
    runs = [path for path in _runs(data).values() if formula(path[0]) in formulas]
    return [atoms for path in runs for atoms in path[::every]]


def frame_set(frames: Sequence[Atoms], name: str) -> FrameSet:
    """Labelled frames under a name."""
    return read_frames(list(frames), name=name)


# Å, as training through relaxations tells whether cells relax.
_SAME_CELL = 1e-6


def _small(pairs: PairSet, most_atoms: int) -> PairSet:
    return pairs.select(k for k, pair in enumerate(pairs) if len(pair.initial) <= most_atoms)


def _runs(data: Path) -> dict[str, list[Atoms]]:
    """The frames of each optimization; DFT restarted most of them once."""
    runs: dict[str, list[Atoms]] = {}
    for atoms in read(data / "relax_trajectories.extxyz", ":"):  # with their labels, which frames keep apart
        runs.setdefault(str(atoms.info["run"]).split("/")[1], []).append(atoms)
    return runs
