"""What becomes of the frames that are given: isolated atoms are left out, and validation is compared with training."""

from __future__ import annotations

import pytest
from ase import Atoms
from ase.db import connect
from ase.io import write

from ase_finetune import finetune
from ase_finetune.errors import DataError, InputError
from tests import morse

TRAIN = morse.labelled(morse.silicon(10, 1))
VALID = morse.labelled(morse.silicon(3, 2))
OPTIONS = {"method": "naive", "replay": None, "epochs": 1, "verbose": False, "device": "cpu", "report": False}


def lone(symbol: str, energy: float, **info: str) -> Atoms:
    return morse.attach(Atoms(symbol, cell=[12.0] * 3, pbc=True, info=info), energy=energy)


# Hydrogen is unknown to the model.
LONE = [lone("Si", -0.8), lone("O", -1.9, config_type="IsolatedAtom"), lone("H", -1.1)]


def run(train, valid, **options):
    return finetune(morse.pretrained(), train, valid, **(OPTIONS | options))


@pytest.fixture(scope="module")
def plain():
    return run(TRAIN, 0.3)


@pytest.mark.parametrize("suffix", ["db", "extxyz"])
def test_a_file_with_isolated_atoms_gives_the_run_without_them(plain, tmp_path, suffix):
    path = tmp_path / f"frames.{suffix}"
    if suffix == "extxyz":
        write(path, TRAIN + LONE)
    else:
        with connect(path) as db:
            for atoms in TRAIN + LONE:
                db.write(atoms, **atoms.info)
    calculator = run(path, 0.3, stream=True if suffix == "db" else None, output=tmp_path / "run")
    assert calculator.metadata["isolated_atoms"] == {"Si": -0.8, "O": -1.9, "H": -1.1}
    assert "validation: 3 of 10 frames of train" in calculator.metadata["split"]
    assert calculator.metadata["reference_offsets"] == pytest.approx(plain.metadata["reference_offsets"], rel=1e-5)
    assert calculator.history[-1]["valid_forces_mae"] == pytest.approx(plain.history[-1]["valid_forces_mae"], rel=1e-3)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "train: 3 isolated atoms are left out" in log
    assert "H -1.1000 eV" in log
    assert plain.metadata["isolated_atoms"] == {}


def test_validation_frames_given_lose_them_too(tmp_path):
    calculator = run(TRAIN + LONE[:1], VALID + LONE)
    assert calculator.metadata["isolated_atoms"] == {"Si": -0.8, "O": -1.9, "H": -1.1}
    assert calculator.metadata["data"] == run(TRAIN, VALID).metadata["data"]


@pytest.mark.parametrize(("train", "valid", "name"), [(LONE, 0.3, "train"), (TRAIN, LONE, "valid")])
def test_nothing_but_isolated_atoms(train, valid, name):
    with pytest.raises(DataError, match=rf"{name}: all 3 frames are isolated atoms \(H, O, Si\)"):
        run(train, valid)


def test_labels_of_isolated_atoms_alone_are_none():
    with pytest.raises(DataError, match="none of 10 frames has an energy, forces or stress label"):
        run([*(atoms.copy() for atoms in morse.silicon(10, 1)), *LONE], 0.3)


def test_a_run_with_isolated_atoms_is_resumed(tmp_path):
    run(TRAIN + LONE, 0.3, output=tmp_path / "run")
    run(TRAIN + LONE, 0.3, output=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"isolated_atoms\.Si: -0\.8 then, -0\.9 now"):
        run([*TRAIN, lone("Si", -0.9), *LONE[1:]], 0.3, output=tmp_path / "run", resume=True)


def test_what_validation_cannot_judge_is_in_the_log(tmp_path):
    valid = morse.labelled(VALID, labels=("energy", "forces"))
    run(TRAIN, valid, output=tmp_path / "run")
    assert "note: no validation frame has stress, which is trained on" in (tmp_path / "run" / "log.txt").read_text()
    run(TRAIN, valid, output=tmp_path / "other", loss={"stress_weight": 0.0})
    assert "no validation frame" not in (tmp_path / "other" / "log.txt").read_text()


def test_seeds_hold_out_different_frames():
    digests = {run(TRAIN, 0.2, seed=seed).metadata["data"]["valid"] for seed in range(4)}
    assert len(digests) == 4
