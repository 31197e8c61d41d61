from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from ase_finetune.reporting.record import AFTER, PairRecord
from ase_finetune.reporting.tiles import Change, change_note, digits, frame_tiles, moved, pair_tiles
from tests.reporting import records

SPACE = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("change", "note", "tone"),
    [
        (Change(100, 80), "−20 %", "better"),
        (Change(100, 120, (10, 30)), "+20 % (+10 to +30 %)", "worse"),
        (Change(100, 95, (-12, 3)), "unclear: −5 % (−12 to +3 %)", ""),
        (Change(100, 100.4, (0.3, 0.5)), "unchanged", ""),
        (Change(0.004, 0.02), "", ""),
        (Change(0.01, 5.0), "", "worse"),
        (Change(math.nan, 5.0), "", ""),
        (Change(1.0, 1e6), "+1.0·10⁸ %", "worse"),
    ],
)
def test_what_is_said_about_a_change(change, note, tone):
    found = change_note(change)
    assert (found[0].replace(SPACE, " "), found[1]) == (note, tone)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.004, "0.00"), (5.123, "5.12"), (51.23, "51.2"), (5123, "5123"), (1.23e7, "1.2·10⁷"), (9.99e9, "1.0·10¹⁰"),
     (math.nan, "–")],
)  # fmt: skip
def test_digits(value, text):
    assert digits(value) == text


def test_sentences_know_chance_and_rounding():
    assert moved(Change(100, 80, (-30, -10)), "meV/Å") == "fell from 100.0 to 80.0 meV/Å"
    assert moved(Change(100, 80, (-30, 10)), "meV/Å") == "fell from 100.0 to 80.0 meV/Å, which may be chance,"
    assert moved(Change(0.01, 3), "meV/Å") == "is 3.00 meV/Å, from 0.01"


def test_what_was_lost_is_worse():
    frames = records.frame_record(structures=8, atoms=5)
    frames.forces[:5, :, AFTER] = math.nan
    forces, energy = frame_tiles(frames)[:2]
    assert (forces.tone, energy.tone == "worse") == ("worse", False)
    assert "no longer finite" in forces.note
    frames.forces[..., AFTER] = math.inf
    forces, _ = frame_tiles(frames)
    assert (forces.text, forces.tone) == ("not finite", "worse")


def test_frames_trained_on_are_never_better():
    tiles = frame_tiles(records.frame_record("train"))
    assert len(tiles) == 2
    assert {tile.tone for tile in tiles} == {""}
    assert all("says nothing about new ones" in tile.note for tile in tiles)


def pair(delta_q, right, failure=None):
    return {"delta_q": delta_q, "rmsd": 0.1 * delta_q, "strain": 0.01, "log_volume": 0.0, "steps": 9,
            "converged": True, "right_basin": right, "failure": failure}  # fmt: skip


def test_medians_are_over_the_same_pairs():
    before = [pair(0.1, True), pair(3.0, False), pair(4.0, False)]
    after = [pair(0.08, True), pair(0.5, True), pair(0.6, True)]
    right, distance, *_ = pair_tiles(PairRecord(["a", "b", "c"], before, after))
    assert (right.text, right.tone) == ("1 → 3 of 3", "better")
    assert (distance.text, distance.tone) == ("0.1 → 0.08 Å √amu", "better")
    assert "in the right minimum before and after" in distance.title


def test_without_pairs_in_the_right_minimum_those_that_did_not_fail_count():
    before = [pair(2.0, False), pair(3.0, False), pair(9.0, False)]
    after = [pair(1.0, False), pair(2.0, True), pair(math.nan, False, "exploded")]
    right, distance, *_ = pair_tiles(PairRecord(["a", "b", "c"], before, after))
    assert right.text == "0 → 1 of 3"
    assert distance.text == "2.5 → 1.5 Å √amu"
    assert "that did not fail" in distance.title


def test_energies_of_another_reference_say_so():
    frames = dataclasses.replace(records.frame_record(structures=20, atoms=10), other_reference=True)
    frames.energy[:, 0] += 50
    tile = frame_tiles(frames)[1]
    assert "after the best offsets per element" in tile.title
    assert float(tile.text.split()[0]) < 20
    few = dataclasses.replace(frames, **{name: getattr(frames, name)[:2] for name in ("energy", "counts", "stress")},
                              numbers=frames.numbers[:20], forces=frames.forces[:20])  # fmt: skip
    assert "perhaps another reference" in frame_tiles(few)[1].title


def test_few_structures_have_no_interval():
    frames = records.frame_record(structures=4)
    assert all("(" not in tile.note for tile in frame_tiles(frames))
    assert all("(" in tile.note for tile in frame_tiles(records.frame_record(structures=5)))
    assert np.isfinite(frames.energy).all()
