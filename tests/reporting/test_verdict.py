"""The verdict on a run, without its page."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from ase_finetune.finetuning import forgetting as training
from ase_finetune.reporting import RunRecord, write_report
from ase_finetune.reporting.forgetting import TYPICAL_ERRORS, Forgotten, forgotten
from ase_finetune.reporting.record import AFTER, BEFORE, LABEL
from ase_finetune.reporting.sets import kept, long_name
from ase_finetune.reporting.stages import is_unchanged
from ase_finetune.reporting.verdict import judge
from tests.reporting import records
from tests.reporting.pages import Page

SPACE = "\N{NO-BREAK SPACE}"


def run(epochs: int = 3, kept: dict | None = None, rows: dict | None = None, **more) -> RunRecord:
    """With what later versions say about the weights that were kept, and with further columns of the history."""
    stage = records.stage(epochs, best=(kept or {}).get("epoch"))
    if kept is not None:
        stage["kept"] = {"epoch": epochs, "epochs": epochs, "fraction": 1.0, "unchanged": False} | kept
    history = records.history(epochs)
    for name, values in (rows or {}).items():
        for row, value in zip(history, values, strict=True):
            row[name] = value
    facts = {name: more.pop(name) for name in ("unchanged", "config") if name in more}
    return records.run(epochs, metadata=records.metadata(stages=[stage]) | facts, history=history, **more)


def headline(record: RunRecord) -> str:
    return judge(record).headline.replace(SPACE, " ")


def target(after: float = 0.1, **more) -> RunRecord:
    """Only a target, the pretrained model off by 0.1 eV/Å."""
    return records.frame_record(slope=0.95, before=0.1, after=after, **more)


def old(after: float = 0.04, name: str = "old"):
    return records.frame_record(name, 30, 10, elements=records.OLD, before=0.04, after=after, slope=0.95, spread=2)


@pytest.mark.parametrize(
    ("after", "words", "tone"), [(0.07, "Better", "better"), (0.1, "No clear change", ""), (0.15, "Worse", "worse")]
)
def test_better_or_worse(after, words, tone):
    frames = target(after)
    if after == 0.1:
        frames.forces[..., AFTER], frames.energy[..., AFTER] = frames.forces[..., BEFORE], frames.energy[..., BEFORE]
    else:
        frames.energy[:, BEFORE:] = frames.energy[:, [LABEL]] + np.array([0.1, after]) * frames.counts[:, None]
    verdict = judge(run(frames=[frames]))
    assert verdict.headline.startswith(f"{words} on the target: forces ")
    assert verdict.tone == tone


def test_forces_and_energies_may_disagree():
    frames = target(0.07)
    frames.energy[:, BEFORE:] = frames.energy[:, [LABEL]] + np.array([0.1, 0.2]) * frames.counts[:, None]
    verdict = judge(run(frames=[frames]))
    assert (verdict.headline.split()[0], verdict.tone) == ("Mixed", "")
    assert "energies +100 %" in verdict.headline.replace(SPACE, " ")


def test_an_error_that_was_small_by_luck_is_shown_as_it_is():
    frames = target(0.07)
    frames.energy[:, BEFORE:] = frames.energy[:, [LABEL]] + 1e-3 * np.array([0.2, 3]) * frames.counts[:, None]
    assert "energies 0.20 → 3.00 meV/atom" in headline(run(frames=[frames]))


def test_stress_is_judged_too():
    frames = records.frame_record(stress=True)
    frames.stress[..., BEFORE] += 0.01
    frames.stress[..., AFTER] = frames.stress[..., LABEL] + 0.005
    assert "stress −50 %" in headline(run(frames=[frames]))


def test_relaxations_are_judged():
    record = records.relaxation_run()
    words = headline(dataclasses.replace(record, frames=record.frames[1:]))
    assert words.startswith("Better on the target: 28 → 28 of 30 relaxations in the right minimum, Delta Q −34 %")


def unchanged_frames():
    frames = records.frame_record()
    frames.forces[..., AFTER], frames.energy[..., AFTER] = frames.forces[..., BEFORE], frames.energy[..., BEFORE]
    return frames


@pytest.mark.parametrize(
    "record",
    [
        run(unchanged=True, frames=[unchanged_frames()]),
        run(kept={"epoch": 0, "unchanged": True, "sentence": "nothing was better"}, frames=[unchanged_frames()]),
        records.run(3, metadata=records.metadata(stages=[records.stage(3, best=0)])),
    ],
    ids=["said of the run", "said of its stage", "old record"],
)
def test_unchanged_stands_in_the_headline(record, tmp_path):
    verdict = judge(record)
    assert verdict.headline.startswith("Unchanged: ")
    assert "Better" not in verdict.headline
    assert any('keep="last"' in step for step in verdict.steps)
    if "kept" in record.metadata["stages"][0]:
        assert verdict.sentences[0] == "Training on labelled frames: nothing was better."
    assert "Unchanged: " in Page(write_report(record, tmp_path)).text


def test_one_stage_that_changed_nothing_is_no_unchanged_run():
    record = records.relaxation_run()
    record.metadata["stages"][1]["best_epoch"] = 0
    assert not is_unchanged(record)
    record.metadata["stages"][0]["best_epoch"] = 0
    assert is_unchanged(record)
    assert not is_unchanged(dataclasses.replace(record, metadata=record.metadata | {"unchanged": False}))
    assert not is_unchanged(RunRecord({}, []))


@pytest.mark.parametrize(
    ("percent", "bound", "word"),
    [
        (-3, 5, "negligible"), (0.99, 5, "negligible"), (1, 5, "small"), (5, 5, "small"), (5.01, 5, "large"),
        (4, 3, "large"), (9, 10, "small"), (5, math.nan, "small"), (5.1, math.nan, "large"), (math.inf, 5, "large"),
    ],
)  # fmt: skip
def test_words_for_what_was_forgotten(percent, bound, word):
    assert Forgotten(percent, bound, labelled=True).word == word


def test_what_the_run_measured_counts():
    record = run(kept={"forgetting": 0.024, "forgetting_labelled": True, "bound": 0.03}, frames=[target(), old(0.2)])
    assert forgotten(record) == Forgotten(pytest.approx(2.4), pytest.approx(3), labelled=True)
    verdict = judge(record)
    assert "Forgotten: small (+2.4 % on old structures)." in headline(record)
    assert any("small: +2.4 %" in tile.text.replace(SPACE, " ") for tile in verdict.tiles[0])
    assert any("up to 3 % was allowed" in tile.note.replace(SPACE, " ") for tile in verdict.tiles[0])


def test_an_old_record_is_judged_by_its_labelled_old_structures_first():
    replay = records.frame_record("replay", 30, 10, own_labels=True, before=0, after=0.5)
    labelled = old(0.06)
    record = run(frames=[target(), replay, labelled])
    assert [frames.name for frames in kept(record)] == ["old", "replay"]
    assert long_name(labelled) == "old structures with DFT labels"
    found = forgotten(record)
    rises = []
    for values, counts in ((labelled.forces, 1), (labelled.energy, labelled.counts[:, None])):
        errors = np.abs(values - values[..., :1]) / counts
        rises.append(100 * (errors[..., AFTER].mean() / errors[..., BEFORE].mean() - 1))
    assert found.percent == pytest.approx(max(rises))
    assert found.labelled
    assert math.isnan(found.bound)


def test_moved_predictions_are_judged_beside_typical_errors():
    replay = records.frame_record("replay", 30, 10, own_labels=True, before=0, after=0)
    replay.forces[..., AFTER] = replay.forces[..., LABEL] + 0.03
    replay.energy[..., AFTER] = replay.energy[..., LABEL]
    record = run(frames=[target(), replay])
    assert forgotten(record).percent == pytest.approx(100 * (math.hypot(20, 30) - 20) / 40)
    assert "Forgotten: large (+40 % on old structures, estimated)" in headline(record)
    assert not any("old structures (replay)" in tile.title for row in judge(record).tiles for tile in row)
    names = {"forces": "forces_mae", "energy": "energy_mae"}
    assert {names[name]: error for name, error in TYPICAL_ERRORS.items()} == training.TYPICAL_ERRORS


def test_lost_predictions_on_old_structures_are_large():
    frames = old()
    frames.energy[0, AFTER] = math.nan
    assert forgotten(run(frames=[frames])).percent == math.inf
    assert "Forgotten: large (predictions are not finite" in headline(run(frames=[frames]))


def test_further_sets_are_not_what_must_be_kept():
    record = run(frames=[target(), old(0.4, "test.extxyz")])
    assert forgotten(record) is None
    assert "What was forgotten is not known" in headline(record)
    assert [tile.title.split(":")[0] for tile in judge(record).tiles[1]] == ["test.extxyz"] * 2


def test_the_worst_element_and_frames_are_named():
    frames = records.frame_record(structures=12, atoms=5)
    frames.forces[frames.numbers == 16, :, AFTER] += 0.3
    for k, size in ((7, 4.0), (3, 2.0), (5, 1.0)):
        frames.forces[5 * k : 5 * k + 5, :, AFTER] += size
    (worst,) = judge(run(frames=[frames])).worst
    assert worst.heads == ("force MAE, meV/Å", "before", "after")
    assert [row[0] for row in worst.rows[1:]] == [f"frame {k} of valid (some.extxyz)" for k in (7, 3, 5)]
    errors = 1e3 * np.abs(frames.forces[35:40, :, 1:] - frames.forces[35:40, :, :1]).mean(axis=(0, 1))
    assert worst.rows[1][1:] == (f"{errors[0]:.1f}", f"{errors[1]:.0f}")
    frames = records.frame_record()
    frames.forces[frames.numbers == 16, :, AFTER] += 0.3
    (worst,) = judge(run(frames=[frames])).worst
    sulphur = frames.numbers == 16
    error = 1e3 * np.abs(frames.forces[sulphur, :, AFTER] - frames.forces[sulphur, :, 0]).mean()
    assert worst.rows[0][0] == f"element S ({sulphur.sum()} of 1000 atoms)"
    assert worst.rows[0][2] == f"{error:.1f}"


def test_a_set_of_one_element_has_no_worst_one():
    (worst,) = judge(run(frames=[records.frame_record(elements=("Si",))])).worst
    assert not any("element" in row[0] for row in worst.rows)


def test_without_forces_the_worst_energies_are_named():
    frames = records.frame_record(structures=6, atoms=5)
    frames.forces[:] = math.nan
    frames.energy[4, AFTER] += 100
    (worst,) = judge(run(frames=[frames])).worst
    assert worst.heads[0] == "energy error, meV/atom"
    assert worst.rows[0][0] == "frame 4 of valid (some.extxyz)"


def test_the_worst_relaxations_are_named():
    record = records.relaxation_run()
    worst = judge(record).worst[1]
    assert worst.heads[0] == "Delta Q, Å √amu"
    assert [row[2] for row in worst.rows[:2]] == ["failed", "failed"]
    ends = [error["delta_q"] for error in record.pairs.after]
    assert worst.rows[2][2] == f"{np.nanmax(ends):.3g}"


def test_fitted_offsets_are_named():
    titles = [tile.title for tile in judge(run()).tiles[0]]
    assert "target (validation): energy error after the fitted offsets" in titles
    record = run()
    record.metadata["reference_offsets"] = {}
    assert "target (validation): energy error" in [tile.title for tile in judge(record).tiles[0]]


def test_checksums_are_out_of_sight(tmp_path):
    record = run()
    page = Page(write_report(record, tmp_path))
    shown, folded = page.source.split("<summary>For the record: checksums</summary>")
    for digest in (record.metadata["base_hash"], "8816ce"):
        assert digest not in shown
        assert digest in folded.split("</details>")[0]


@pytest.mark.parametrize(
    "stranger",
    [
        {"kept": None},
        {"kept": {"forgetting": None, "bound": "much", "fraction": None, "epoch": None, "sentence": 3}},
        {"kept": {"epoch": 2, "unchanged": "no", "forgetting": math.inf, "gains": 7}},
        {"kept": {}},
    ],
)
def test_strange_entries_have_a_verdict(stranger, tmp_path):
    record = run()
    record.metadata["stages"][0] |= stranger
    record.metadata["unchanged"] = None
    assert "Better on the target" in Page(write_report(record, tmp_path)).text
