"""Structures and arguments that relax() cannot use: told one by one, the others as if they were alone."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLength, FixCartesian

from ase_finetune import FinetunedCalculator
from ase_finetune.errors import InputError
from ase_finetune.optimize import relax
from tests import morse
from tests.optimize.runs import calculator, cluster, small_cell, strained


def nan_position():
    atoms = strained(1)
    atoms.positions[3, 1] = np.nan
    return atoms


def coincident():
    atoms = cluster()
    atoms.positions[4] = atoms.positions[1]
    return atoms


def squeezed():
    """Atoms 0.15 Å apart: the first step tears the cell apart."""
    return Atoms("SiO", positions=[(0, 0, 0), (0.15, 0, 0)], cell=[3.0, 3.0, 3.0], pbc=True)


def assert_same(one, two):
    assert (one.steps, one.converged, one.failure) == (two.steps, two.converged, two.failure)
    np.testing.assert_allclose(one.atoms.positions, two.atoms.positions, rtol=0, atol=1e-9)
    np.testing.assert_allclose(one.atoms.cell[:], two.atoms.cell[:], rtol=0, atol=1e-9)
    assert one.fmax == pytest.approx(two.fmax, abs=1e-8)


@pytest.mark.parametrize("max_edges", [1, 700, 100_000])
@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
def test_broken_structures_are_told_and_the_others_unaffected(max_edges, optimizer):
    slow = strained(0)
    good = [small_cell(0), small_cell(1), slow]
    start = [nan_position(), good[0], coincident(), good[1], slow, Atoms()]
    options = {"fmax": 0.05, "steps": 14, "max_edges": max_edges}
    results = relax(start, calculator(), optimizer, **options)
    assert len(results) == len(start)
    assert "position of atom 3 (O) is not finite" in results[0].failure
    assert "coincide" in results[2].failure
    assert "no atoms" in results[5].failure
    for k in (0, 2, 5):
        assert not results[k].converged
        assert results[k].steps == 0
        assert results[k].fmax == float("inf")
        assert results[k].atoms.calc is None
        assert len(results[k].atoms) == len(start[k])
    for k, atoms in zip((1, 3, 4), good, strict=True):
        assert results[k].failure is None
        assert_same(results[k], relax([atoms], calculator(), optimizer, **options)[0])
    assert not results[4].converged
    assert results[4].steps == 14
    assert results[4].fmax > 0.05
    assert results[4].atoms.calc is not None


def still():
    """A crystal so near its minimum that even the largest steps below leave it in place."""
    atoms = bulk("Si", "fcc", a=3.1)
    return relax([atoms], calculator(), "lbfgs", cell=True, fmax=1e-10, steps=200)[0].atoms


@pytest.mark.parametrize("max_edges", [1, 100_000])
def test_structures_that_explode_are_told_where_they_were_last(max_edges):
    options = {"cell": True, "fmax": 1e-9, "steps": 8, "step_size": 0.05, "maxstep": None, "max_edges": max_edges}
    start = [squeezed(), still(), squeezed()]
    results = relax(start, calculator(), "gradient-descent", **options)
    for result in (results[0], results[2]):
        assert not result.converged
        assert "volume has changed by a factor of" in result.failure or "not finite" in result.failure
        assert result.steps >= 1
        assert np.isfinite(result.atoms.positions).all()
        assert np.isfinite(result.fmax)
        assert result.atoms.calc is None
    assert results[1].failure is None
    assert results[1].converged


@pytest.mark.parametrize("step_size", [1e4, 1e300])
def test_atoms_that_fly_away_are_told(step_size):
    options = {"fmax": 1e-9, "steps": 8, "step_size": step_size, "maxstep": None}
    results = relax([cluster(), still()], calculator(), "gradient-descent", **options)
    assert "an atom has moved by" in results[0].failure
    assert results[0].steps == 1
    np.testing.assert_allclose(results[0].atoms.positions, cluster().positions, rtol=0, atol=0)
    assert results[1].converged


def test_forces_that_are_not_finite_are_told():
    # A well so narrow that exp(-width (r - distance)) overflows where atoms are close.
    potential = morse.pretrained().double()
    potential.native["width"].data[1] = 1500.0
    near = Atoms("Si2", positions=[(0, 0, 0), (0, 0, 1.0)])
    far = Atoms("Si2", positions=[(0, 0, 0), (0, 0, 5.0)])
    results = relax([near, far], calculator(potential), fmax=0.01, steps=5)
    assert results[0].failure == "forces are not finite"
    assert results[1].converged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "bfgs"}, r"optimizer 'bfgs' is not known; use one of gradient-descent, fire, lbfgs"),
        ({"optimizer": "fire", "alpha": 3.0}, "alpha"),
        ({"optimizer": "lbfgs", "dt": 3.0}, "dt"),
        ({"dt": 0.0}, "dt must be a positive number, got 0"),
        ({"dt": -0.1}, "dt must be a positive number"),
        ({"maxstep": float("nan")}, "maxstep must be a positive number"),
        ({"steps": -1}, "steps must not be negative, got -1"),
        ({"fmax": 0.0}, "fmax must be a positive number, got 0"),
        ({"fmax": -0.1}, "fmax must be"),
        ({"fmax": float("nan")}, "fmax must be"),
        ({"max_edges": 0}, "max_edges must be positive, got 0"),
        ({"skin": -0.1}, "skin must not be negative"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(InputError, match=message):
        relax([cluster()], calculator(), **options)


def test_an_optimizer_that_is_made_takes_no_options():
    from ase_finetune.optimize import FIREStep

    with pytest.raises(InputError, match="options dt have no effect"):
        relax([cluster()], calculator(), FIREStep(), dt=0.1)


def test_an_ensemble_has_no_one_potential():
    calc = FinetunedCalculator([morse.pretrained(), morse.truth()], device="cpu")
    with pytest.raises(InputError, match="ensemble"):
        relax([cluster()], calc)


def constrained(constraint):
    atoms = small_cell()
    atoms.set_constraint(constraint)
    return atoms


@pytest.mark.parametrize(
    ("atoms", "cell", "message"),
    [
        (Atoms("SiU", positions=[(0, 0, 0), (0, 0, 2)]), False, "structure 2: atom 1 is U"),
        (constrained(FixBondLength(0, 1)), False, "structure 2: the constraint FixBondLengths? is not supported"),
        (constrained(FixCartesian(0)), True, "structure 2: FixCartesian cannot be combined with a cell"),
        (cluster(), True, "structure 2 has no periodic cell"),
        (
            Atoms("Si", cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]], pbc=(True, True, False)),
            True,
            "structure 2 has no periodic cell",
        ),
        (Atoms("Si", cell=[3, 3, 3], pbc=False), True, "structure 2 has no periodic cell"),
    ],
)
@pytest.mark.parametrize("max_edges", [1, None])
def test_structures_that_cannot_be_used_are_named_before_anything_runs(atoms, cell, message, max_edges):
    calc = calculator()
    calc.potential.predict = None  # nothing may be evaluated
    with pytest.raises(InputError, match=message):
        relax([small_cell(0), constrained(FixAtoms([0])), atoms, small_cell(1)], calc, cell=cell, max_edges=max_edges)
