"""Losses that are not finite, and labels that are far off."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.errors import TrainingError
from ase_finetune.finetuning.frame_task import FrameBatches
from ase_finetune.finetuning.updating import PieceLoss
from tests import morse

TRAIN = morse.labelled(morse.silicon(9, 1))
VALID = morse.labelled(morse.silicon(4, 2))
OLD = morse.oxide(8, 3)
COMMON = {"epochs": 2, "learning_rate": 0.02, "monitor_size": 3, "batch_size": 3, "device": "cpu"}


def run(train=TRAIN, *, valid=VALID, **options):
    return finetune(morse.pretrained(), train, valid, replay=OLD, **(COMMON | options))


@pytest.fixture
def spoil(monkeypatch):
    """Make the loss of some training frames, in some evaluations, something that is not finite."""

    def install(bad, value, times=10**9):
        original = FrameBatches._piece_loss
        left = times

        def piece_loss(self, graphs, counts, sums, examples):
            nonlocal left
            loss = original(self, graphs, counts, sums, examples)
            if sums is None or not bad.intersection(examples) or not left:
                return loss
            left -= 1
            return PieceLoss(value * loss.value, loss.keep)

        monkeypatch.setattr(FrameBatches, "_piece_loss", piece_loss)

    return install


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_a_bad_frame_is_told_and_its_steps_are_left_out(spoil, capsys, value, schedule):
    spoil({4}, value)
    calculator = run(method="reewc", replay_schedule=schedule, valid=None)
    told = [line for line in capsys.readouterr().out.splitlines() if "was skipped" in line]
    assert len(told) == 2
    assert all(f"was skipped: the loss is {value} because of frame 4 of train (list)" in line for line in told)
    assert [row["skipped_steps"] for row in calculator.history] == [1, 1]
    # Only the frames that were trained on count.
    assert all(math.isfinite(row["train_loss"]) for row in calculator.history)
    assert all(bool(parameter.isfinite().all()) for parameter in calculator.potential.parameters())
    assert not morse.same_weights(calculator.potential, morse.pretrained())


def test_a_replay_structure_may_be_the_bad_one(monkeypatch, capsys):
    original = FrameBatches._piece_loss

    def piece_loss(self, graphs, counts, sums, examples):
        loss = original(self, graphs, counts, sums, examples)
        return loss if sums is not None or 2 not in examples else PieceLoss(math.nan * loss.value, loss.keep)

    monkeypatch.setattr(FrameBatches, "_piece_loss", piece_loss)
    calculator = run(method="replay", replay_batch_size=2)
    assert "because of frame 3 of replay (list)" in capsys.readouterr().out
    assert sum(row["skipped_steps"] for row in calculator.history) >= 1


def test_many_bad_steps_are_told_in_one_line(spoil, capsys):
    spoil({0, 1, 2, 3, 4, 5, 6, 7}, math.nan)
    run(method="naive", epochs=1, batch_size=1, max_skipped_steps=9)
    told = capsys.readouterr().out
    assert told.count("was skipped") == 3
    assert "note: 8 steps of this epoch were skipped" in told


def test_several_in_a_row_end_the_run_with_the_last_good_model_kept(spoil, tmp_path):
    spoil(set(range(9)), math.nan)
    with pytest.raises(TrainingError, match=r"^3 steps in a row could not be made \(max_skipped_steps\)"):
        run(output=tmp_path / "first", max_skipped_steps=3)
    assert not (tmp_path / "first" / "model").exists()


def test_the_last_good_model_is_kept(monkeypatch, tmp_path):
    options = {"method": "naive", "schedule": "constant", "warmup": 0.0, "valid": None}
    good = run(epochs=1, **options)
    original, made = FrameBatches._piece_loss, 0

    def piece_loss(self, graphs, counts, sums, examples):
        nonlocal made
        made += 1
        loss = original(self, graphs, counts, sums, examples)
        return loss if made <= 3 else PieceLoss(math.nan * loss.value, loss.keep)

    monkeypatch.setattr(FrameBatches, "_piece_loss", piece_loss)
    with pytest.raises(TrainingError, match=r"^5 steps in a row .*best model so far is in .*run.model") as caught:
        run(epochs=3, output=tmp_path / "run", **options)
    assert "because of frame" in str(caught.value)
    monkeypatch.undo()
    kept = FinetunedCalculator(tmp_path / "run" / "model", device="cpu")
    assert morse.same_weights(kept.potential, good.potential)


def test_a_run_that_diverges_keeps_no_model_that_did(tmp_path):
    """Without validation the last epoch is the result, unless it could not be trained on."""
    options = {"method": "reewc", "valid": None, "learning_rate": 1e6, "clip_norm": None, "batch_size": 2}
    with pytest.raises(TrainingError, match=r"steps in a row"):
        run(morse.labelled(morse.silicon(16, 1)), output=tmp_path / "run", max_skipped_steps=12, **options)
    with (tmp_path / "run" / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["best"] for row in rows] == ["False"]
    assert not (tmp_path / "run" / "model").exists()


# Outliers


def far_off(frames, position, **changes):
    """Frames of which one has other labels."""
    made = list(frames)
    results = frames[position].calc.results
    made[position] = morse.attach(frames[position], **(results | {k: f(results[k]) for k, f in changes.items()}))
    return made


@pytest.fixture
def wrong():
    frames = morse.labelled(morse.silicon(20, 6))
    rng = np.random.default_rng(0)
    frames = far_off(frames, 3, energy=lambda energy: energy + 80.0)
    frames = far_off(frames, 8, forces=lambda forces: forces + 50 * rng.normal(size=forces.shape))
    return far_off(frames, 15, stress=lambda stress: stress + 4.0)


def test_outliers_are_told_before_training_and_kept(wrong, capsys):
    calculator = run(wrong, method="naive", epochs=1)
    told = capsys.readouterr().out
    before, _ = told.split("\nepoch ")
    assert "note: frame 3 of train (list): energy -" in before
    assert "note: frame 8 of train (list): largest force error +" in before
    assert "note: frame 15 of train (list): largest stress error +" in before
    assert "drop_outliers" not in told
    assert calculator.history[0]["train_energy_mae"] > 100


def test_outliers_are_dropped_if_asked(wrong, capsys):
    calculator = run(wrong, method="naive", drop_outliers=True)
    told = capsys.readouterr().out
    assert "3 of 20 training frames are left out (drop_outliers)" in told
    clean = run([atoms for k, atoms in enumerate(wrong) if k not in (3, 8, 15)], method="naive")
    assert morse.same_weights(calculator.potential, clean.potential)
    assert calculator.metadata["reference_offsets"] == clean.metadata["reference_offsets"]
    assert calculator.metadata["errors"] == clean.metadata["errors"]


def test_other_compositions_are_no_outliers(capsys):
    """Energies are compared in the reference of the model."""
    frames = [*TRAIN, *morse.labelled(morse.oxide(3, 9))]
    moved = [
        morse.attach(a, **(a.calc.results | {"energy": a.calc.results["energy"] + 30.0 * a.symbols.count("O")}))
        for a in frames
    ]
    run(moved, method="naive", epochs=1)
    assert "robust deviations" not in capsys.readouterr().out


def test_dropping_nothing_changes_nothing():
    assert morse.same_weights(run(drop_outliers=True).potential, run().potential)
