"""The data bundled in examples/data are what their README says."""

from __future__ import annotations

from pathlib import Path

import pytest

from ase_finetune.data import FrameSet, check_disjoint, embedded_replay, read_frames

FOLDER = Path(__file__).parents[2] / "examples" / "data"
BUNDLED = {
    "lips_train": (80, {"energy": 80, "forces": 80, "stress": 0}),
    "lips_valid": (25, {"energy": 25, "forces": 25, "stress": 0}),
    "mptrj_retention": (70, {"energy": 70, "forces": 70, "stress": 70}),
    "mptrj_replay": (60, {"energy": 60, "forces": 60, "stress": 60}),
    "crystal_pairs_initial": (12, {"energy": 0, "forces": 0, "stress": 0}),
    "crystal_pairs_relaxed": (12, {"energy": 12, "forces": 0, "stress": 0}),
}


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets(name):
    frames = read_frames(FOLDER / f"{name}.extxyz", require_labels=False)
    assert (len(frames), frames.num_labels) == BUNDLED[name]
    assert f"`{name}.extxyz`" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_evaluation_sets_share_nothing_with_training():
    check_disjoint(read_frames(FOLDER / "lips_train.extxyz"), read_frames(FOLDER / "lips_valid.extxyz", name="valid"))
    retention = read_frames(FOLDER / "mptrj_retention.extxyz", name="retention")
    check_disjoint(read_frames(FOLDER / "mptrj_replay.extxyz", name="replay"), retention)
    check_disjoint(FrameSet.from_atoms(embedded_replay(), name="embedded"), retention)


def test_pairs_belong_together():
    initial, relaxed = (
        read_frames(FOLDER / f"crystal_pairs_{end}.extxyz", require_labels=False) for end in ("initial", "relaxed")
    )
    for before, after in zip(initial, relaxed, strict=True):
        assert before.atoms.info["structure_id"] == after.atoms.info["structure_id"]
        assert (before.atoms.numbers == after.atoms.numbers).all()
