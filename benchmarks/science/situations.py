"""Situations in which somebody fine-tunes for the first time: a few frames or pairs, and nothing but defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read

from ase_finetune import FinetunedCalculator
from ase_finetune.data import FrameSet, read_frames


@dataclass(frozen=True)
class Situation:
    """What is trained on, and what is judged on.

    Attributes
    ----------
    sources
        Arguments of ``finetune()`` that hold data, from the folder of the research data.
    unseen
        Frames, or pairs of initial and relaxed structures, that training does not know.
    options
        What is not a default.
    """

    sources: Callable[[Path], dict[str, Any]]
    unseen: Callable[[Path], FrameSet | list[tuple[Atoms, Atoms]]]
    options: Mapping[str, Any] = field(default_factory=dict)


def _read(data: Path, file: str) -> list[Atoms]:
    return list(read(data / file, index=":"))


def _spread(frames: list[Atoms], count: int) -> list[Atoms]:
    return [frames[k * len(frames) // count] for k in range(count)]


def _liquid(data: Path, *, isolated: bool = False, second: bool = False) -> dict[str, Any]:
    """12 of the frames of the liquid, or the next ones of a second round."""
    frames = _read(data, "licl_cocl2_periodic.xyz")
    liquid = [atoms for atoms in frames if len(atoms) > 1]
    return {"train": liquid[int(second) : 24 : 2] + [a for a in frames if isolated and len(a) == 1]}


def _unseen_liquid(data: Path) -> FrameSet:
    liquid = [atoms for atoms in _read(data, "licl_cocl2_periodic.xyz") if len(atoms) > 1]
    return read_frames([*liquid[1:24:6], *liquid[25:44:3]])


def _lgps(count: int) -> Situation:
    return Situation(lambda data: {"train": _spread(_read(data, "lgps_train.extxyz"), count)}, _unseen_lgps)


def _unseen_lgps(data: Path) -> FrameSet:
    return read_frames(_read(data, "lgps_valid.extxyz")[::4])


def _lips(step: int) -> Callable[[Path], dict[str, Any]]:
    return lambda data: {"train": _read(data, "lips_train.extxyz")[::step]}


def _unseen_lips(data: Path) -> FrameSet:
    return read_frames(_read(data, "lips_test.extxyz"))


def _silicon(data: Path) -> tuple[list[Atoms], list[Atoms]]:
    frames = [a for a in _read(data, "mlearn_Si.extxyz") if a.info["group"] in ("Vacancy", "AIMD-NVT")]
    used = {k * len(frames) // 36 for k in range(36)}
    return [frames[k] for k in sorted(used)], [atoms for k, atoms in enumerate(frames) if k not in used][::5]


_RELAXATION = "insertion_wf/YMgPO4-structure optimization-0"


def _phosphate(data: Path) -> tuple[list[Atoms], list[Atoms]]:
    """One relaxation, and frames of others of the same composition."""
    frames = [atoms for atoms in _read(data, "relax_trajectories.extxyz") if "YMgPO4" in atoms.info["run"]]
    mine = [atoms.info["run"].startswith(_RELAXATION) for atoms in frames]
    others = [atoms for atoms, own in zip(frames, mine, strict=True) if not own]
    return [atoms for atoms, own in zip(frames, mine, strict=True) if own], others[::8]


def _pairs(data: Path, part: str, count: int) -> list[tuple[Atoms, Atoms]]:
    ends = [_read(data, f"crystal_pairs_{part}_{end}.extxyz") for end in ("initial", "relaxed")]
    chosen = np.linspace(0, len(ends[0]) - 1, count).round().astype(int)
    return [(ends[0][k], ends[1][k]) for k in chosen]


def _crystals(count: int, method: str) -> Situation:
    return Situation(
        lambda data: {"relaxations": _pairs(data, "train", count)},
        lambda data: _pairs(data, "valid", 30),
        {"method": method},
    )


def _own_labels(data: Path) -> dict[str, Any]:
    """Frames labelled by SevenNet-0 itself, with noise of 2 meV/atom, 20 meV/Å and 1 meV/Å³."""
    calculator, random, made = FinetunedCalculator("7net-0"), np.random.default_rng(0), []
    for atoms in _spread(_read(data, "lgps_train.extxyz"), 48):
        (found,) = calculator.calculate_many([atoms])
        labelled = atoms.copy()
        labelled.info = {"source": atoms.info["source"]}
        labelled.calc = SinglePointCalculator(
            labelled,
            energy=found["energy"] + random.normal(0, 0.002) * len(atoms),
            forces=found["forces"] + random.normal(0, 0.02, found["forces"].shape),
            stress=found["stress"] + random.normal(0, 0.001, 6),
        )
        made.append(labelled)
    return {"train": made}


SITUATIONS = {
    "liquid12": Situation(_liquid, _unseen_liquid),
    "liquid12_isolated": Situation(lambda data: _liquid(data, isolated=True), _unseen_liquid),
    "lgps5": _lgps(5),
    "lgps20": _lgps(20),
    "lgps100": _lgps(100),
    "lips24": Situation(_lips(5), _unseen_lips),
    "si36": Situation(lambda data: {"train": _silicon(data)[0]}, lambda data: read_frames(_silicon(data)[1])),
    "ypo4": Situation(lambda data: {"train": _phosphate(data)[0]}, lambda data: read_frames(_phosphate(data)[1])),
    "bptt6": _crystals(6, "bptt"),
    "bptt60": _crystals(60, "bptt"),
    "bpttreewc6": _crystals(6, "bptt+reewc"),
    "bpttreewc60": _crystals(60, "bptt+reewc"),
    "noise48": Situation(_own_labels, _unseen_lgps),
    "highlr": Situation(_lips(10), _unseen_lips, {"learning_rate": 0.1}),
}
