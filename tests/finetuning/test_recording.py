"""The record of a run: what it says is what calculators say."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.analysis import evaluate_calculator
from ase_finetune.data import read_frames
from ase_finetune.errors import CheckpointError
from ase_finetune.finetuning import recording, run_folder
from ase_finetune.reporting import RECORD_FILE, RunRecord
from ase_finetune.trajectories import evaluate_relaxations
from tests import morse

TRAIN, VALID, OLD = morse.labelled(morse.silicon(6, 1)), morse.labelled(morse.silicon(3, 2)), morse.oxide(6, 3)
OPTIONS = {
    "replay": OLD,
    "epochs": 2,
    "monitor_size": 2,
    "learning_rate": 3e-3,
    "batch_size": 2,
    "device": "cpu",
    "verbose": False,
}


def recorded(folder, *arguments, **options):
    potential = morse.pretrained()
    calculator = finetune(potential, *arguments, output=folder, **(OPTIONS | options))
    before = FinetunedCalculator(morse.pretrained(), device="cpu")
    return RunRecord.read(folder / RECORD_FILE), before, calculator


def test_frames(tmp_path):
    record, before, after = recorded(tmp_path, TRAIN, VALID, method="reewc")
    valid, replay = record.frames
    assert (valid.name, valid.own_labels, valid.available) == ("valid", False, 3)
    assert (replay.name, replay.own_labels, replay.available) == ("replay", True, 2)
    assert valid.descriptions[1].startswith("frame 1 of valid")
    assert valid.counts.tolist() == [len(atoms) for atoms in VALID]
    assert valid.numbers.tolist() == [z for atoms in VALID for z in atoms.numbers]
    for column, calc in ((1, before), (2, after)):
        found = calc.calculate_many(VALID)
        assert valid.energy[:, column] == pytest.approx([item["energy"] for item in found], abs=1e-4)
        assert valid.forces[..., column] == pytest.approx(np.concatenate([item["forces"] for item in found]), abs=1e-5)
        assert valid.stress[..., column] == pytest.approx(np.stack([item["stress"] for item in found]), abs=1e-6)
    assert np.abs(valid.forces[..., 2] - valid.forces[..., 1]).max() > 1e-3
    assert replay.forces[..., 0] == pytest.approx(replay.forces[..., 1], abs=1e-6)


def test_labels_are_in_the_reference_of_the_model(tmp_path):
    """Errors of the record are those of the run."""
    record, _, after = recorded(tmp_path, TRAIN, VALID, method="naive", reference="align")
    (valid, _) = record.frames
    errors = 1e3 * np.abs(valid.energy[:, 2] - valid.energy[:, 0]) / valid.counts
    assert errors.mean() == pytest.approx(after.metadata["errors"]["after"]["valid"]["energy_mae"], rel=1e-4)
    raw = evaluate_calculator(after, read_frames(VALID)).raw.energy_mae
    assert errors.mean() < 0.7 * raw


def test_missing_labels_are_nan(tmp_path):
    bare = [atoms.copy() for atoms in VALID]
    for atoms, labelled in zip(bare, VALID, strict=True):
        atoms.info["REF_energy"] = labelled.get_potential_energy()
    record, _, _ = recorded(tmp_path, TRAIN, bare, method="naive")
    (valid, _) = record.frames
    assert np.isnan(valid.forces[..., 0]).all()
    assert np.isfinite(valid.forces[..., 1:]).all()
    assert np.isfinite(valid.energy).all()


def test_without_validation_training_frames_are_recorded(tmp_path):
    record, _, _ = recorded(tmp_path, TRAIN, None, method="naive")
    assert [item.name for item in record.frames] == ["train", "replay"]


def test_without_replay(tmp_path):
    record, _, _ = recorded(tmp_path, TRAIN, VALID, method="naive", replay=None)
    assert [item.name for item in record.frames] == ["valid"]


def test_samples_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "MOST_FRAMES", 2)
    record, _, _ = recorded(tmp_path, TRAIN, VALID, method="naive")
    (valid, _) = record.frames
    assert len(valid.counts) == 2
    assert valid.available == 3
    assert [text.split(" of ")[0] for text in valid.descriptions] == ["frame 0", "frame 2"]


def test_drift(tmp_path):
    record, before, after = recorded(tmp_path, TRAIN, None, method="ewc", freeze=["shift"])
    was, now = (dict(calc.potential.native_parameters()) for calc in (before, after))
    assert [item.name for item in record.drift] == list(was)
    for item in record.drift:
        change = (now[item.name] - was[item.name]).detach().double()
        assert item.change == pytest.approx(float(change.square().mean().sqrt()), rel=1e-5)
        assert item.trained == (item.name != "shift")
        assert (item.change > 0) == item.trained
    assert sum(item.stiffness for item in record.drift if item.trained) == pytest.approx(1, abs=1e-5)
    assert all(np.isnan(item.stiffness) for item in recorded(tmp_path / "n", TRAIN, VALID, method="naive")[0].drift)


def test_recording_leaves_the_weights_alone(tmp_path):
    _, _, with_record = recorded(tmp_path / "a", TRAIN, VALID, method="reewc")
    without = finetune(morse.pretrained(), TRAIN, VALID, method="reewc", **OPTIONS)
    assert morse.same_weights(with_record.potential, without.potential)
    saved = FinetunedCalculator(tmp_path / "a" / "model", device="cpu")
    assert morse.same_weights(saved.potential, without.potential)


def test_no_report(tmp_path):
    finetune(morse.pretrained(), TRAIN, VALID, method="naive", output=tmp_path, report=False, **OPTIONS)
    assert not (tmp_path / RECORD_FILE).exists()
    assert not (tmp_path / "report.html").exists()


def test_report_may_be_wanted_later(tmp_path):
    """A finished run is resumed to get the report that it did not write."""
    options = OPTIONS | {"method": "naive", "output": tmp_path}
    finetune(morse.pretrained(), TRAIN, VALID, report=False, **options)
    finetune(morse.pretrained(), TRAIN, VALID, resume=True, **options)
    assert (tmp_path / "report.html").exists()
    assert len(RunRecord.read(tmp_path / RECORD_FILE).history) == 2


def pairs(count, seed=7):
    target = morse.silicon(count, seed)
    start = [copy.deepcopy(atoms) for atoms in target]
    for number, atoms in enumerate(start):
        atoms.rattle(0.05, seed=number)
    return list(zip(start, target, strict=True))


def test_relaxations(tmp_path):
    held_out = pairs(3, seed=8)
    bptt = {"steps": 4, "epochs": 1, "batch_size": 2}
    options = {"relaxations": pairs(4), "valid_relaxations": held_out, "method": "bptt", "bptt": bptt}
    record, before, after = recorded(tmp_path, **options)
    found = record.pairs
    assert found is not None
    for values, calc in ((found.before, before), (found.after, after)):
        expected = evaluate_relaxations(calc, *zip(*held_out, strict=True), cell=False, fmax=0.05)
        assert [item["rmsd"] for item in values] == pytest.approx([error.rmsd for error in expected], rel=1e-4)
        assert [item["steps"] for item in values] == [error.steps for error in expected]
    worst = [found.after[k]["delta_q"] for k in found.shown]
    assert worst == sorted((item["delta_q"] for item in found.after), reverse=True)
    for target, k in zip(found.targets, found.shown, strict=True):
        assert target.positions == pytest.approx(held_out[k][1].positions)
    assert found.gradient_norms.shape == (4, 4)
    assert (found.gradient_norms > 0).all()
    assert [item.name for item in record.frames] == ["replay"]


def test_record_is_read_as_written(tmp_path):
    record, _, _ = recorded(
        tmp_path, relaxations=pairs(4), valid_relaxations=0.5, method="bptt+ewc", bptt={"steps": 2, "epochs": 1}
    )
    record.write(tmp_path / "again")
    again = RunRecord.read(tmp_path / "again")
    assert again.metadata == record.metadata
    assert again.drift == record.drift
    for one, two in zip(again.frames, record.frames, strict=True):
        assert one.descriptions == two.descriptions
        for name in ("numbers", "counts", "energy", "forces", "stress"):
            assert np.array_equal(getattr(one, name), getattr(two, name), equal_nan=True)
            assert getattr(one, name).dtype == getattr(two, name).dtype
    assert again.pairs is not None
    assert again.pairs.targets == record.pairs.targets
    assert again.pairs.ends_before == record.pairs.ends_before
    assert np.array_equal(again.pairs.gradient_norms, record.pairs.gradient_norms)


def test_damaged_record(tmp_path):
    recorded(tmp_path, TRAIN, VALID, method="naive")
    file = tmp_path / RECORD_FILE
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        RunRecord.read(file)


def test_a_report_that_fails_does_not_cost_the_run(tmp_path, monkeypatch, capsys):
    """The model is there, the log says what is missing, and resuming makes the report."""

    def broken(*_, **__):
        raise ValueError("cannot\ndraw")

    monkeypatch.setattr(run_folder, "write_report", broken)
    options = OPTIONS | {"method": "naive", "output": tmp_path, "verbose": True}
    calc = finetune(morse.pretrained(), TRAIN, VALID, **options)
    told = capsys.readouterr().out
    assert "note: there is no report (ValueError: cannot draw); the model is in" in told
    saved = FinetunedCalculator(tmp_path / "model", device="cpu")
    assert morse.same_weights(saved.potential, calc.potential)
    log = (tmp_path / "log.txt").read_text()
    written, outcome = log.splitlines()[-2:]
    assert written.startswith("written to")
    assert "report.html" not in written
    assert outcome == calc.metadata["outcome"]
    monkeypatch.undo()
    finetune(morse.pretrained(), TRAIN, VALID, resume=True, **options)
    assert (tmp_path / "report.html").exists()


def test_log_is_there_before_the_report(tmp_path, monkeypatch):
    """Killed while the report is made: the log has the comparison already."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "write_report", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(morse.pretrained(), TRAIN, VALID, **(OPTIONS | {"method": "naive", "output": tmp_path}))
    assert "softening slope" in (tmp_path / "log.txt").read_text()
