"""Make ``examples/data``: small labelled sets cut from the research data.

    python benchmarks/make_example_data.py DATA_FOLDER

``DATA_FOLDER`` holds the extxyz files named below; sources and licences are in ``examples/data/README.md``.
Evenly spaced or small frames are taken, and numbers are cut to 8 significant digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from make_embedded_replay import diverse_order, is_crystal

from ase_finetune.data.frames import Frame, FrameSet
from ase_finetune.data.splits import check_disjoint

TARGET = Path(__file__).parents[1] / "examples" / "data"


def evenly(frames: list[Atoms], count: int) -> list[Atoms]:
    """Frames at equal distances in the file, the first and the last included."""
    return [frames[int(index)] for index in np.linspace(0, len(frames) - 1, count).round()]


def diverse(frames: list[Atoms], count: int, max_atoms: int) -> list[Atoms]:
    """Small crystals that cover many elements."""
    small = [atoms for atoms in frames if len(atoms) <= max_atoms and is_crystal(atoms)]
    return [small[index] for index in diverse_order(small)[:count]]


def internal_motion(initial: Atoms, relaxed: Atoms) -> float:
    """Largest displacement (Å) apart from the strain of the cell: symmetry forbids it in most small crystals."""
    moved = relaxed.get_scaled_positions() - initial.get_scaled_positions()
    moved -= moved.round()
    return float(np.linalg.norm((moved - moved.mean(axis=0)) @ relaxed.cell[:], axis=1).max())


def significant(values: Iterable[float], digits: int = 8) -> np.ndarray:
    rounded = np.array([float(f"{value:.{digits - 1}e}") for value in np.ravel(values)])
    return rounded.reshape(np.shape(values))


def shorten(atoms: Atoms) -> Atoms:
    """The frame with 8 significant digits."""
    short = Atoms(atoms.numbers, significant(atoms.positions), cell=significant(atoms.cell[:]), pbc=atoms.pbc)
    short.info.update(atoms.info)
    if atoms.calc is not None:
        labels = {key: significant(value) for key, value in atoms.calc.results.items()}
        if "energy" in labels:
            labels["energy"] = float(labels["energy"])
        short.calc = SinglePointCalculator(short, **labels)
    return short


def save(frames: list[Atoms], name: str) -> None:
    path = TARGET / name
    write(path, [shorten(atoms) for atoms in frames], format="extxyz")
    # extxyz pads every number with blanks.
    lines = (" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {len(frames)} frames, {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the research data")
    data: Path = parser.parse_args().data
    TARGET.mkdir(parents=True, exist_ok=True)

    save(evenly(read(data / "lips_train.extxyz", ":"), 80), "lips_train.extxyz")
    save(evenly(read(data / "lips_valid.extxyz", ":"), 25), "lips_valid.extxyz")

    retention = diverse(read(data / "mptrj_retention.extxyz", ":"), 70, 40)
    tested = {atoms.info["mptrj_traj_id"] for atoms in retention}
    replay = [atoms for atoms in read(data / "mptrj_replay.extxyz", ":") if atoms.info["mptrj_traj_id"] not in tested]
    replay = diverse(replay, 60, 24)
    check_disjoint(FrameSet("replay", map(Frame, replay)), FrameSet("retention", map(Frame, retention)))
    save(retention, "mptrj_retention.extxyz")
    save(replay, "mptrj_replay.extxyz")

    pairs = [read(data / f"crystal_pairs_train_{end}.extxyz", ":") for end in ("initial", "relaxed")]
    moving = [index for index, pair in enumerate(zip(*pairs, strict=True)) if 0.1 < internal_motion(*pair) < 1.0]
    chosen = [moving[index] for index in diverse_order([pairs[0][index] for index in moving])[:12]]
    for frames, end in zip(pairs, ("initial", "relaxed"), strict=True):
        save([frames[index] for index in chosen], f"crystal_pairs_{end}.extxyz")


if __name__ == "__main__":
    main()
