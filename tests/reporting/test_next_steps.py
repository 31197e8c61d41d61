"""What to do next, for each outcome."""

from __future__ import annotations

import dataclasses

import pytest

from ase_finetune.reporting.record import AFTER
from ase_finetune.reporting.verdict import judge
from tests.reporting import records
from tests.reporting.test_verdict import old, run, target

#: An error that fell to its end.
SETTLED = {"valid_loss": (1.5e-3, 1.0e-3, 0.999e-3)}


def steps(record) -> str:
    found = judge(record).steps
    assert 0 < len(found) <= 3
    return " ".join(found).replace("\N{NO-BREAK SPACE}", " ")


def test_a_good_run_is_tried_on_unseen_frames():
    text = steps(run(rows=SETTLED))
    assert text == "Evaluate it on frames it has never seen: ase-finetune report RUN --frames test.extxyz."


def test_after_further_sets_nothing_is_left_to_do():
    record = run(rows=SETTLED)
    record = dataclasses.replace(record, frames=[*record.frames, old(name="test.extxyz")])
    assert judge(record).steps == []


def test_a_loss_that_still_falls_asks_for_epochs():
    assert "more epochs may help" in steps(run())
    assert "more epochs may help" not in steps(run(rows=SETTLED))
    assert "more epochs may help" not in steps(run(kept={"epoch": 2}))


def test_a_run_that_did_not_end_goes_on():
    assert "resume=True" in steps(records.run(3, metadata=records.metadata()))


@pytest.mark.parametrize(("rises", "bound"), [((0.06, 0.07, 0.08), True), ((0.01, 0.02, 0.02), False)])
def test_unchanged_says_why_and_how_to_keep_the_last_epoch(rises, bound):
    rows = {"forgetting": rises, "valid_loss": (1e-3,) * 3 if bound else (9e-3,) * 3}
    text = steps(run(kept={"epoch": 0, "unchanged": True, "bound": 0.05}, rows=rows))
    assert 'keep="last"' in text
    assert ("forgot more than allowed (5 %). Allow more with a larger max_forgetting" in text) == bound
    assert ("no epoch was better than the model it began with" in text) != bound


def test_a_bound_that_cost_something_may_be_larger():
    assert "cost something" in steps(run(kept={"fraction": 0.7, "bound": 0.05}, rows=SETTLED))
    rows = {"forgetting": (0.02, 0.04, 0.06), "valid_loss": (1.5e-3, 1e-3, 0.9e-3)}
    assert "The bound on forgetting (5 %) cost something" in steps(run(kept={"epoch": 2, "bound": 0.05}, rows=rows))
    rows["forgetting"] = (0.02, 0.03, 0.04)
    assert "cost something" not in steps(run(kept={"epoch": 2, "bound": 0.05}, rows=rows))


def test_a_worse_target():
    frames = target(0.2)
    frames.energy[..., AFTER] += frames.counts
    text = steps(run(rows=SETTLED, frames=[frames, old()]))
    assert "The target got worse: take a smaller learning_rate." in text
    assert 'or keep="best"' in steps(run(rows=SETTLED, frames=[frames, old()], config={"keep": "last"}))


@pytest.mark.parametrize(
    ("method", "bound", "words"),
    [
        ("naive", None, 'method="reewc"'),
        ("bptt", None, 'method="reewc"'),
        ("bptt+reewc", None, "max_forgetting=0.05"),
        ("replay", 0.05, "smaller learning_rate or fewer epochs"),
    ],
)
def test_much_was_forgotten(method, bound, words):
    kept = {"forgetting": 0.2, "forgetting_labelled": True, "bound": bound}
    text = steps(run(kept=kept, rows=SETTLED, config={"method": method}))
    assert words in text
    assert words not in steps(run(kept=kept | {"forgetting": 0.02}, rows=SETTLED, config={"method": method}))


def test_few_structures_and_pairs():
    assert "with 4 structures the numbers" in steps(run(rows=SETTLED, frames=[records.frame_record(structures=4)]))
    record = run(rows=SETTLED, frames=[], pairs=records.pair_record(1, failed=0, kept=1))
    assert "with 1 pair the numbers" in steps(record)


def test_without_validation_and_old_structures():
    text = steps(run(rows=SETTLED, frames=[]))
    assert "Give validation data" in text
    assert "Watch old structures" in text


def test_labels_of_frames_far_off_are_looked_at():
    frames = records.frame_record()
    frames.forces[80:120, :, AFTER] += 0.6
    assert "labels of the worst frames: the first one has" in steps(run(rows=SETTLED, frames=[frames, old()]))
    frames.forces[80:120, :, AFTER] += 50
    assert "Look at frame 2 of valid (some.extxyz) and its labels" in steps(run(rows=SETTLED, frames=[frames, old()]))
