from __future__ import annotations

from ase_finetune.data import FrameSet, data_report, embedded_replay, read_frames
from tests.data.conftest import labelled


def test_table_of_sets(trajectory):
    del trajectory[3].calc.results["stress"]
    sets = {"train": read_frames(trajectory), "valid": read_frames([labelled(50, "Li4Cl4", free_energy=-1.0)])}
    lines = data_report(sets).splitlines()
    assert lines[0].split() == ["set", "frames", "atoms", "energy", "forces", "stress", "elements"]
    assert lines[1].split() == ["train", "10", "8", "10", "10", "9", "Na", "Cl"]
    assert lines[2].split() == ["valid", "1", "8", "1", "1", "1", "Li", "Cl"]
    assert lines[3] == "train: energy from energy (calc); forces from forces (calc); stress from stress (calc)"
    assert "valid: energy from free_energy (calc)" in lines[4]
    assert len(lines) == 5


def test_coverage_of_the_replay_set(trajectory):
    sets = {"train": read_frames(trajectory)}
    assert "2 of 2 target elements occur in the replay set" in data_report(sets, {11, 17})
    assert "1 of 2 target elements occur in the replay set; Cl missing" in data_report(sets, {11})
    sets["replay"] = FrameSet.from_atoms(embedded_replay(40), name="replay")
    report = data_report(sets)
    assert "2 of 2 target elements" in report
    assert "81 elements" in report
    assert data_report({"all": sets["replay"]}, set()).endswith("... missing")


def test_notes_are_shown(trajectory):
    for atoms in trajectory:
        atoms.info["dft_energy"] = atoms.calc.results.pop("energy")
    assert "train: no energy labels, but there are keys dft_energy" in data_report({"train": read_frames(trajectory)})
