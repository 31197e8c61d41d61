"""Make ``ase_finetune/data/embedded/mptrj_replay.npz``, the replay structures of the package.

    python benchmarks/make_embedded_replay.py mptrj_replay.extxyz --exclude mptrj_retention.extxyz

The source holds random MPtrj frames (CC BY 4.0) as converted for the benchmarks of microsoft/mattersim
(MIT). Structures only are kept. Trajectories that occur in the excluded files, on which forgetting is
measured, are left out. The result depends on nothing but the source.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read

from ase_finetune.data.frames import Frame, FrameSet
from ase_finetune.data.splits import check_disjoint

TARGET = Path(__file__).parents[1] / "ase_finetune" / "data" / "embedded" / "mptrj_replay.npz"

# Å³ per atom (caesium has 115), and eV/Å.
MAX_VOLUME, MAX_FORCE = 120.0, 10.0


def compositions(structures: list[Atoms]) -> np.ndarray:
    """(m, 119) fraction of each atomic number."""
    counts = np.stack([np.bincount(atoms.numbers, minlength=119) for atoms in structures])
    return counts / counts.sum(axis=1, keepdims=True)


def diverse_order(structures: list[Atoms]) -> list[int]:
    """Greedy order: new elements first, then unlike compositions of rarely used elements.

    Large cells pay for their cost: of two candidates that are equally new the smaller one comes first.
    """
    fractions = compositions(structures)
    contains = fractions > 0
    sizes = np.array([len(atoms) for atoms in structures])
    used = np.zeros(119)
    distance = np.full(len(structures), 2.0)
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


def is_crystal(atoms: Atoms) -> bool:
    """Whether a frame looks like a crystal: MPtrj has some blown-up cells and exploding geometries."""
    dense = atoms.get_volume() / len(atoms) < MAX_VOLUME
    return bool(dense and np.abs(atoms.get_forces()).max() < MAX_FORCE)


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


def save(structures: list[Atoms], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        sizes=np.array([len(atoms) for atoms in structures], dtype=np.uint16),
        numbers=np.concatenate([atoms.numbers for atoms in structures]).astype(np.uint8),
        positions=np.concatenate([atoms.positions for atoms in structures]).astype(np.float32),
        cells=np.stack([atoms.cell[:] for atoms in structures]).astype(np.float32),
        ids=np.array([atoms.info["mptrj_snapshot_id"] for atoms in structures]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="labelled MPtrj frames")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="files whose trajectories are left out")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--max-atoms", type=int, default=64)
    parser.add_argument("--output", type=Path, default=TARGET)
    args = parser.parse_args()

    excluded = [atoms for path in args.exclude for atoms in read(path, index=":")]
    known = {atoms.info["mptrj_traj_id"] for atoms in excluded}
    source = [atoms for atoms in read(args.source, index=":") if atoms.info["mptrj_traj_id"] not in known]
    pool = candidates(source, args.max_atoms)
    chosen = [pool[index] for index in diverse_order(pool)[: args.count]]
    check_disjoint(FrameSet.from_atoms(chosen, name="replay"), FrameSet("excluded", map(Frame, excluded)))
    save(chosen, args.output)
    elements = {int(z) for atoms in chosen for z in atoms.numbers}
    print(f"{len(chosen)} structures, {len(elements)} elements, {args.output.stat().st_size} bytes in {args.output}")


if __name__ == "__main__":
    main()
