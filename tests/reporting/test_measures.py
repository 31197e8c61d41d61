from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from ase import units

from ase_finetune.reporting.measures import (
    column,
    dominant,
    element_errors,
    judged_energies,
    lost,
    not_finite,
    number,
    set_errors,
    structures_that_improved,
)
from ase_finetune.reporting.record import AFTER, BEFORE, FrameRecord
from tests.reporting import records


def test_errors_are_numpys():
    frames = records.frame_record(stress=True)
    for when in (BEFORE, AFTER):
        found = set_errors(frames, when)
        per_atom = (frames.energy[:, when] - frames.energy[:, 0]) / frames.counts
        assert found.energy == pytest.approx(1e3 * np.abs(per_atom).mean())
        assert found.forces == pytest.approx(1e3 * np.abs(frames.forces[..., when] - frames.forces[..., 0]).mean())
        kbar = np.abs(frames.stress[..., when] - frames.stress[..., 0]).mean() / (0.1 * units.GPa)
        assert found.stress == pytest.approx(kbar)
        slope, *_ = np.linalg.lstsq(frames.forces[..., 0].reshape(-1, 1), frames.forces[..., when].ravel(), rcond=None)
        assert found.slope == pytest.approx(slope[0])


def two_structures() -> FrameRecord:
    """H2 and HO by hand, in eV and eV/Å."""
    energy = np.array([[-2.0, -2.2, -2.1], [-5.0, -5.2, -5.1]])
    forces = np.zeros((4, 3, 3))
    forces[:, 0, 0] = 1.0, -1.0, 2.0, -2.0
    forces[..., BEFORE] = 0.8 * forces[..., 0]
    forces[..., AFTER] = [[1.1, 0, 0], [-1, 0, 0], [2, 0.3, 0], [-2, 0, -0.6]]
    nothing = np.full((2, 6, 3), math.nan)
    numbers, counts = np.array([1, 1, 1, 8]), np.array([2, 2])
    return FrameRecord("valid", False, numbers, counts, ["a", "b"], energy, forces, nothing, 2)


def test_errors_by_hand():
    before, after = (set_errors(two_structures(), when) for when in (BEFORE, AFTER))
    assert (before.energy, after.energy) == pytest.approx((100, 50))
    assert (before.forces, after.forces) == pytest.approx((1e3 * 1.2 / 12, 1e3 * 1.0 / 12))
    assert (before.slope, after.slope) == pytest.approx((0.8, 10.1 / 10))
    assert math.isnan(before.stress)


def test_element_errors_by_hand():
    found = element_errors(two_structures())
    assert list(found) == [1, 8]
    assert (found[1].atoms, found[8].atoms) == (3, 1)
    assert (found[1].before, found[1].after) == pytest.approx((1e3 * 0.8 / 9, 1e3 * 0.4 / 9))
    assert found[8].change == pytest.approx(1e3 * (0.6 - 0.4) / 3)


def test_a_structure_is_better_when_its_force_errors_are_smaller():
    assert structures_that_improved(two_structures()) == (1, 2, "force")  # 0.4 to 0.1 and 0.8 to 0.9 eV/Å


def test_without_forces_the_energies_decide():
    frames = two_structures()
    assert structures_that_improved(dataclasses.replace(frames, forces=np.full((4, 3, 3), math.nan))) == (
        2,
        2,
        "energy",
    )


def test_aligned_energies_lose_an_offset_per_element():
    rng = np.random.default_rng(0)
    frames = records.frame_record(structures=20, atoms=10)
    offsets = {3: 0.3, 15: -0.1, 16: 0.7}
    shift = np.array([offsets[int(z)] for z in frames.numbers]).reshape(20, 10).sum(axis=1)
    frames.energy[:, AFTER] = frames.energy[:, 0] + shift + rng.normal(scale=1e-4, size=20)
    found = set_errors(frames, AFTER)
    assert found.energy > 100
    assert found.aligned < 0.02


def test_too_few_structures_say_nothing_about_offsets():
    assert math.isnan(set_errors(records.frame_record(structures=3), AFTER).aligned)


def test_missing_labels_are_left_out():
    frames = two_structures()
    frames.energy[0, 0] = math.nan
    frames.forces[:2, :, 0] = math.nan
    assert set_errors(frames, BEFORE).energy == pytest.approx(100)
    assert set_errors(frames, AFTER).forces == pytest.approx(1e3 * 0.9 / 6)
    assert not_finite(frames) == 0


def test_predictions_that_are_not_finite_are_counted():
    frames = two_structures()
    frames.forces[3, 1, AFTER] = math.nan
    frames.energy[1, AFTER] = math.inf
    assert not_finite(frames) == 1
    assert set_errors(frames, AFTER).energy == pytest.approx(50)


@pytest.mark.parametrize("value", [None, "", "x", math.inf, -math.inf, math.nan, True, [1]])
def test_what_is_no_number_is_nan(value):
    assert math.isnan(number(value))


def test_columns_keep_their_place():
    rows = [{"a": 1}, {}, {"a": None}, {"a": "2.5"}]
    np.testing.assert_array_equal(column(rows, "a"), [1, math.nan, math.nan, 2.5])


def test_lost_predictions_are_left_out_before_too():
    frames = two_structures()
    frames.forces[2:, :, AFTER] = math.nan
    frames.energy[1, AFTER] = math.inf
    assert set_errors(frames, BEFORE).forces == pytest.approx(1e3 * 0.4 / 6)
    assert set_errors(frames, AFTER).forces == pytest.approx(1e3 * 0.1 / 6)
    assert set_errors(frames, BEFORE).energy == pytest.approx(100)
    assert (lost(frames, "forces"), lost(frames, "energy"), not_finite(frames, BEFORE)) == (True, True, 0)
    assert not lost(two_structures(), "forces")


def test_forces_of_nothing_have_no_slope():
    frames = two_structures()
    frames.forces[...] *= 1e-4
    assert math.isnan(set_errors(frames, AFTER).slope)


def test_isolated_atoms_are_judged_by_their_energies():
    frames = records.frame_record(structures=6, atoms=1, before=0.1, after=0.01)
    frames.forces[:] = 0.0
    improved, known, what = structures_that_improved(frames)
    errors = np.abs(frames.energy[:, 1:] - frames.energy[:, :1])
    assert (improved, known, what) == ((errors[:, 1] < errors[:, 0]).sum(), 6, "energy")
    frames.forces[0, :, BEFORE] = 0.3
    assert structures_that_improved(frames)[2] == "force or energy"


def test_energies_of_another_reference_are_judged_without_it():
    frames = records.frame_record(structures=20, atoms=10)
    frames.energy[:, 0] += 30
    assert judged_energies(frames)[0].mean() > 2
    before, after, aligned = judged_energies(dataclasses.replace(frames, other_reference=True))
    assert aligned
    assert max(before.mean(), after.mean()) < 0.02
    few = dataclasses.replace(records.frame_record(structures=3), other_reference=True)
    assert not judged_energies(few)[2]


def test_one_structure_that_makes_most_of_the_error_is_found():
    frames = records.frame_record(structures=8, atoms=5)
    assert dominant(frames) is None
    frames.energy[2, AFTER] += 40
    assert dominant(frames) == (2, "energy")
    frames.forces[15:20, :, AFTER] += 5
    assert dominant(frames) == (3, "force")
    assert dominant(records.frame_record(structures=1)) is None
