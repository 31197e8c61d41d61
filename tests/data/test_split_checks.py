"""What validation cannot judge is said."""

from __future__ import annotations

import pytest
from ase.db import connect

from ase_finetune.data import Pair, PairSet, pair_split_notes, read_frames, split_notes
from tests.data.conftest import labelled, salt


def frames(count: int, start: int, symbols: str = "Na4Cl4", without: tuple[str, ...] = (), kind: str | None = None):
    made = [labelled(start + seed, symbols) for seed in range(count)]
    for atoms in made:
        for label in without:
            del atoms.calc.results[label]
        if kind is not None:
            atoms.info["config_type"] = kind
    return made


def notes(train, valid, *trained_on):
    return split_notes(read_frames(train), read_frames(valid, name="valid"), *trained_on)


def test_alike_sets_have_no_notes():
    assert notes(frames(8, 0, kind="bulk"), frames(2, 10, kind="bulk")) == []
    assert notes(frames(8, 0), frames(2, 10)) == []


def test_missing_labels():
    parts = frames(8, 0), frames(2, 10, without=("forces", "stress"))
    assert notes(*parts) == [
        "no validation frame has forces, which are trained on",
        "no validation frame has stress, which is trained on",
    ]
    assert notes(*parts, ["energy", "forces"]) == ["no validation frame has forces, which are trained on"]
    assert notes(frames(8, 0, without=("stress",)), frames(2, 10)) == []
    assert notes(frames(8, 0), [*frames(2, 10, without=("stress",)), *frames(1, 12)]) == []


def test_elements_of_one_set_only():
    train = [*frames(3, 0), *frames(2, 3, "Li4Cl4"), *frames(1, 5, "Na4Br4")]
    assert notes(train, frames(2, 10, "K4Cl4")) == [
        "no validation frame has these elements of training frames: Li (2), Na (4)",
        "validation has elements that no training frame has: K",
    ]


@pytest.mark.parametrize("stream", [True, False])
def test_kinds(tmp_path, stream):
    train = [*frames(4, 0, kind="surface"), *frames(3, 4, kind="bulk"), *frames(1, 7, kind="dimer"), *frames(2, 8)]
    with connect(tmp_path / "frames.db") as db:
        for atoms in train:
            db.write(atoms, **atoms.info)
    read = read_frames(tmp_path / "frames.db", stream=stream)
    missing = "no validation frame is of a config_type that training frames are of: 'surface' (4)"
    assert split_notes(read, read_frames(frames(2, 10, kind="bulk"))) == [missing]
    assert split_notes(read, read_frames(frames(2, 10))) == [f"{missing}, 'bulk' (3)"]


def test_a_validation_file_without_the_key_has_no_kinds():
    assert notes(frames(4, 0, kind="surface"), frames(2, 10)) == []


def test_pairs():
    def pairs(name: str, *symbols: str) -> PairSet:
        return PairSet(name, [Pair(salt(0, s), salt(1, s), name=str(i)) for i, s in enumerate(symbols)])

    train = pairs("relaxations", "Na4Cl4", "Na4Cl4", "Li4F4", "Li4Cl4")
    assert pair_split_notes(train, pairs("valid", "Na4Br4")) == [
        "no validation pair has these elements of training pairs: Li (2), Cl (3)",
        "validation has elements that no training pair has: Br",
    ]
    assert pair_split_notes(train, pairs("valid", "Na4Cl4", "Li4F4")) == []
