"""Make ``ase_finetune/data/embedded/replay.npz``, the replay structures of the package.

    python benchmarks/make_embedded_replay.py mptrj_replay.extxyz wbm_relaxed.extxyz --exclude mptrj_retention.extxyz

The first source holds random MPtrj frames (CC BY 4.0) as converted for the benchmarks of microsoft/mattersim (MIT),
the second one relaxed crystals of WBM (CC BY 4.0), whose compositions are not in MPtrj, as in Materialyze's matcalc
(BSD-3). Structures only are kept. Trajectories that occur in the excluded files, on which forgetting is measured, are
left out, and of WBM two crystals of five. The result depends on nothing but the sources.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read

from ase_finetune.data.frames import Frame, FrameSet
from ase_finetune.data.splits import check_disjoint

TARGET = Path(__file__).parents[1] / "ase_finetune" / "data" / "embedded" / "replay.npz"

# Å³ per atom (caesium has 115), and eV/Å.
MAX_VOLUME, MAX_FORCE = 120.0, 10.0

# Of each five crystals of WBM, those that forgetting is measured on.
LEFT = (0, 2)


def compositions(structures: Sequence[Atoms]) -> np.ndarray:
    """(m, 119) fraction of each atomic number."""
    counts = np.stack([np.bincount(atoms.numbers, minlength=119) for atoms in structures])
    return counts / counts.sum(axis=1, keepdims=True)


def diverse_order(structures: list[Atoms], before: Sequence[Atoms] = ()) -> list[int]:
    """Greedy order: new elements first, then unlike compositions of rarely used elements, seen from those ``before``.

    Large cells pay for their cost: of two candidates that are equally new the smaller one comes first.
    """
    fractions = compositions(structures)
    contains = fractions > 0
    sizes = np.array([len(atoms) for atoms in structures])
    used = np.zeros(119)
    distance = np.full(len(structures), 2.0)
    for known in compositions(before) if before else ():
        used += known > 0
        distance = np.minimum(distance, np.abs(fractions - known).sum(axis=1))
    left = np.ones(len(structures), dtype=bool)
    order: list[int] = []
    while left.any():
        new = (contains & (used == 0)).sum(axis=1)
        rarity = (contains / (1 + used)).sum(axis=1) / contains.sum(axis=1)
        score = 1e3 * new + distance + rarity - sizes / 100
        best = int(np.argmax(np.where(left, score, -np.inf)))
        order.append(best)
        left[best] = False
        used += contains[best]
        distance = np.minimum(distance, np.abs(fractions - fractions[best]).sum(axis=1))
    return order


def is_dense(atoms: Atoms) -> bool:
    """Whether there is no more room than atoms need."""
    return bool(atoms.get_volume() / len(atoms) < MAX_VOLUME)


def is_crystal(atoms: Atoms) -> bool:
    """Whether a frame looks like a crystal: MPtrj has some blown-up cells and exploding geometries."""
    return bool(is_dense(atoms) and np.abs(atoms.get_forces()).max() < MAX_FORCE)


def candidates(structures: list[Atoms], max_atoms: int) -> list[Atoms]:
    """Small structures, and the smallest ones with the elements that only large structures have."""
    structures = [atoms for atoms in structures if is_crystal(atoms)]
    small = [atoms for atoms in structures if len(atoms) <= max_atoms]
    covered = {z for atoms in small for z in atoms.numbers}
    for atoms in sorted((a for a in structures if len(a) > max_atoms), key=len):
        if set(atoms.numbers) - covered:
            small.append(atoms)
            covered |= set(atoms.numbers)
    return small


def source_id(atoms: Atoms) -> str:
    """The name of a structure in its source."""
    return str(atoms.info["mptrj_snapshot_id" if "mptrj_snapshot_id" in atoms.info else "material_id"])


def save(structures: list[Atoms], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        sizes=np.array([len(atoms) for atoms in structures], dtype=np.uint16),
        numbers=np.concatenate([atoms.numbers for atoms in structures]).astype(np.uint8),
        positions=np.concatenate([atoms.positions for atoms in structures]).astype(np.float32),
        cells=np.stack([atoms.cell[:] for atoms in structures]).astype(np.float32),
        ids=np.array([source_id(atoms) for atoms in structures]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="labelled MPtrj frames")
    parser.add_argument("relaxed", type=Path, help="relaxed crystals of WBM")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="files whose trajectories are left out")
    parser.add_argument("--count", type=int, default=400, help="of MPtrj")
    parser.add_argument("--max-atoms", type=int, default=64)
    parser.add_argument("--output", type=Path, default=TARGET)
    args = parser.parse_args()

    excluded = [atoms for path in args.exclude for atoms in read(path, index=":")]
    known = {atoms.info["mptrj_traj_id"] for atoms in excluded}
    source = [atoms for atoms in read(args.source, index=":") if atoms.info["mptrj_traj_id"] not in known]
    pool = candidates(source, args.max_atoms)
    chosen = [pool[index] for index in diverse_order(pool)[: args.count]]
    relaxed = [atoms for k, atoms in enumerate(read(args.relaxed, index=":")) if k % 5 not in LEFT and is_dense(atoms)]
    chosen += [relaxed[index] for index in diverse_order(relaxed, chosen)]
    check_disjoint(FrameSet.from_atoms(chosen, name="replay"), FrameSet("excluded", map(Frame, excluded)))
    save(chosen, args.output)
    elements = {int(z) for atoms in chosen for z in atoms.numbers}
    print(f"{len(chosen)} structures, {len(elements)} elements, {args.output.stat().st_size} bytes in {args.output}")


if __name__ == "__main__":
    main()
