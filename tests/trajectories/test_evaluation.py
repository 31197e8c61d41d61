"""Relaxations compared with where they should end, on the Morse potential."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms

from ase_finetune.errors import InputError
from ase_finetune.trajectories.evaluation import PairError, evaluate_relaxations, summarize
from tests.optimize.runs import calculator, cluster
from tests.trajectories.runs import crystal, rattled, relaxed

TIGHT = {"fmax": 1e-7, "steps": 1500, "optimizer": "lbfgs"}


@pytest.fixture(scope="module")
def minima():
    return [relaxed(crystal(3, 0), True, 1e-9), relaxed(crystal(4, 0), True, 1e-9)]


def robust(distance):
    """How much of a distance counts: far away, where another basin begins, less and less."""
    return 0.1 * math.log1p(distance / 0.1)


def stretched(atoms, factor):
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell[:] * factor, scale_atoms=True)
    return atoms


def test_a_perfect_model_makes_no_errors(minima):
    initial = [rattled(stretched(atoms, 1.01)) for atoms in minima]
    for atoms in initial:  # a shift of the whole structure is none
        atoms.positions += 1.3
    errors = evaluate_relaxations(calculator(), initial, minima, **TIGHT)
    for error in errors:
        assert error.failure is None
        assert error.converged
        assert error.right_basin
        assert error.steps > 3
        assert max(error.rmsd, error.delta_q, error.strain, abs(error.log_volume)) < 1e-6
    summary = summarize(errors)
    assert (summary.right_basin, summary.converged, summary.failed, summary.total) == (2, 2, 0, 2)
    assert summary.loss < 2e-6
    assert summary.volume_mae < 1e-4


def test_errors_are_the_distances_to_the_targets(minima):
    # Targets that are not minima of this potential: strained by 2 per cent, and one atom out of place.
    strained = stretched(minima[0], 1.02)
    displaced = minima[1].copy()
    displaced.positions[1] += (0.03, 0, 0)
    errors = evaluate_relaxations(calculator(), minima, [strained, displaced], **TIGHT)
    assert all(error.right_basin for error in errors)
    assert errors[0].log_volume == pytest.approx(-3 * math.log(1.02), abs=1e-6)
    assert errors[0].strain == pytest.approx(math.sqrt(3) * (1 - 1.02**-2) / 2, abs=1e-6)
    assert errors[0].rmsd < 1e-6
    moves = np.zeros((4, 3))
    moves[1, 0] = 0.03
    even = moves - moves.mean(axis=0)
    assert errors[1].rmsd == pytest.approx(math.sqrt((even**2).sum() / 4), abs=1e-6)
    masses = displaced.get_masses()[:, None]
    heavy = moves - (masses * moves).sum(axis=0) / masses.sum()
    assert errors[1].delta_q == pytest.approx(math.sqrt((masses * heavy**2).sum()), abs=1e-6)
    assert errors[1].strain < 1e-6
    assert summarize(errors).volume_mae == pytest.approx(50 * (1 - 1.02**-3), abs=1e-4)


def test_another_basin_is_counted_apart():
    # The same shape with two atoms of different elements exchanged is another minimum.
    right = relaxed(cluster(0), False, 1e-9)
    wrong = right.copy()
    wrong.positions[[0, 2]] = right.positions[[2, 0]]
    errors = evaluate_relaxations(calculator(), [rattled(wrong), rattled(right)], [right, right], cell=False, **TIGHT)
    assert [error.right_basin for error in errors] == [False, True]
    assert all(error.converged for error in errors)
    assert errors[0].rmsd > 0.15
    assert errors[1].rmsd < 1e-6
    summary = summarize(errors)
    assert summary.right_basin == 1
    assert summary.rmsd_median == summary.rmsd_mean == errors[1].rmsd
    assert summary.loss == pytest.approx((robust(errors[0].rmsd) + robust(errors[1].rmsd)) / 2)


def test_a_neighbouring_basin_is_another():
    # An atom in the double well between two fixed ones binds to either of them.
    near, far = (Atoms("Si3", positions=[(0, 0, 0), (0, 0, z), (0, 0, 6.4)]) for z in (2.5, 3.9))
    for atoms in (near, far):
        atoms.set_constraint(FixAtoms([0, 2]))
    errors = evaluate_relaxations(calculator(), [near, far], [far, far], cell=False, **TIGHT)
    # The wells are mirror images, z and 6.4 - z.
    assert errors[0].rmsd - errors[1].rmsd == pytest.approx((2 * 3.9 - 6.4) / math.sqrt(3), abs=1e-6)
    assert 0.5 < errors[0].rmsd < 1
    assert [error.right_basin for error in errors] == [False, True]


def test_another_lattice_is_another_basin():
    # One atom is never displaced: only the strain tells a simple cubic lattice from a face-centred one.
    simple, centred = (Atoms("Si", cell=cell, pbc=True) for cell in (2.5 * np.eye(3), 1.9 * (1 - np.eye(3))))
    errors = evaluate_relaxations(calculator(), [simple, centred], [centred, centred], fmax=1e-3, optimizer="lbfgs")
    assert all(error.converged for error in errors)
    assert errors[0].rmsd == errors[1].rmsd == 0
    assert errors[0].strain > 0.3
    assert [error.right_basin for error in errors] == [False, True]


def test_molecules_are_aligned():
    minimum = relaxed(cluster(0), False, 1e-9)
    turned = rattled(minimum)
    turned.rotate(50, (1, 2, 3))
    turned.positions += 4.0
    (error,) = evaluate_relaxations(calculator(), [turned], [minimum], cell=False, **TIGHT)
    assert error.right_basin
    assert max(error.rmsd, error.delta_q) < 1e-6
    assert error.strain == error.log_volume == 0


def test_with_fixed_atoms_a_shift_counts():
    minimum = relaxed(cluster(0), False, 1e-9)
    held = minimum.copy()
    held.positions += (0.05, 0, 0)
    held.set_constraint(FixAtoms([0, 1, 2]))
    (error,) = evaluate_relaxations(calculator(), [held], [minimum], cell=False, **TIGHT)
    assert error.rmsd == pytest.approx(0.05, abs=1e-5)


def test_failures_are_told_and_do_not_count(minima):
    squeezed = Atoms("SiOSi", positions=minima[0].positions, cell=minima[0].cell, pbc=True)
    squeezed.positions[1] = squeezed.positions[0]
    errors = evaluate_relaxations(calculator(), [squeezed, rattled(minima[1])], minima, **TIGHT)
    assert "coincide" in errors[0].failure
    assert not errors[0].converged
    assert not errors[0].right_basin
    assert math.isnan(errors[0].rmsd)
    assert errors[1].failure is None
    summary = summarize(errors)
    assert (summary.failed, summary.right_basin, summary.converged, summary.total) == (1, 1, 1, 2)
    assert summary.loss == pytest.approx(robust(errors[1].rmsd + errors[1].strain))


def test_a_target_that_cannot_be_relaxed_has_no_basin(minima):
    broken = minima[0].copy()
    broken.positions[1] = broken.positions[0] + 1e-6
    (error,) = evaluate_relaxations(calculator(), minima[:1], [broken], **TIGHT)
    assert error.failure is None
    assert not error.right_basin
    assert error.rmsd > 0.1


def test_relaxations_that_need_more_steps(minima):
    (error,) = evaluate_relaxations(calculator(), [stretched(minima[0], 1.05)], minima[:1], fmax=1e-6, steps=3)
    assert error.failure is None
    assert not error.converged
    assert error.steps == 3


def test_lists_must_match(minima):
    with pytest.raises(InputError, match="2 initial and 1 relaxed structures"):
        evaluate_relaxations(calculator(), minima, minima[:1])
    assert evaluate_relaxations(calculator(), [], []) == []


def test_summary():
    inside = {"right_basin": True, "converged": True}
    errors = [
        PairError(delta_q=1.0, rmsd=0.1, strain=0.01, log_volume=math.log(1.1), steps=10, **inside),
        PairError(delta_q=2.0, rmsd=0.2, strain=0.02, log_volume=math.log(0.7), steps=20, **inside),
        PairError(delta_q=9.0, rmsd=0.6, strain=0.09, log_volume=math.log(2.0), steps=30, **inside),
        PairError(delta_q=50.0, rmsd=2.0, strain=1.0, log_volume=1.0, steps=90),
        PairError(steps=5, failure="exploded"),
    ]
    summary = summarize(errors)
    assert summary.loss == pytest.approx(sum(robust(each) for each in (0.11, 0.22, 0.69, 3.0)) / 4)
    assert (summary.rmsd_median, summary.rmsd_mean) == pytest.approx((0.2, 0.3))
    assert (summary.strain_median, summary.strain_mean) == pytest.approx((0.02, 0.04))
    assert summary.delta_q_median == pytest.approx(2.0)
    assert summary.volume_mae == pytest.approx((10 + 30 + 100) / 3)
    assert summary.steps_median == 20
    assert (summary.right_basin, summary.converged, summary.failed, summary.total) == (3, 3, 1, 5)
    assert summary.to_dict()["rmsd_median"] == summary.rmsd_median


@pytest.mark.parametrize("errors", [[], [PairError(failure="exploded")], [PairError(rmsd=1.0, strain=0.1)]])
def test_summary_of_nothing_in_the_right_basin(errors):
    summary = summarize(errors)
    assert math.isnan(summary.rmsd_median)
    assert math.isnan(summary.volume_mae)
    assert (summary.right_basin, summary.total) == (0, len(errors))
