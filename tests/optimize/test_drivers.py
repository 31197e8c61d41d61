"""The drivers against ASE's own optimizers, step for step."""

from __future__ import annotations

import ase.optimize
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLengths, FixCartesian
from ase.filters import StrainFilter, UnitCellFilter

from ase_finetune.errors import InputError
from ase_finetune.optimize import FIRE, LBFGS, GradientDescent
from tests.optimize import runs
from tests.optimize.runs import STRUCTURES, run
from tests.pretrained import pretrained

PAIRS = {"FIRE": (FIRE, ase.optimize.FIRE), "LBFGS": (LBFGS, ase.optimize.LBFGS)}

OPTIONS = [
    ("FIRE", {}),
    ("FIRE", {"dt": 0.02, "dtmax": 0.3, "maxstep": 0.05}),
    ("FIRE", {"dt": 0.2, "Nmin": 2, "finc": 1.3, "fdec": 0.4, "astart": 0.2, "fa": 0.9, "a": 0.25}),
    ("LBFGS", {}),
    ("LBFGS", {"memory": 3}),
    ("LBFGS", {"maxstep": 0.04, "damping": 0.7, "alpha": 30.0}),
]

CELLS = {
    "free": {},
    "diagonal": {"mask": [1, 1, 1, 0, 0, 0]},
    "layers": {"mask": [1, 1, 0, 0, 0, 1]},
    "hydrostatic": {"hydrostatic_strain": True},
    "constant volume": {"constant_volume": True},
    "pressure": {"scalar_pressure": 0.05},
    "factor": {"exp_cell_factor": 3.0},
}


def assert_steps_of_ase(name, atoms, limit=1e-8, **options):
    """Equal within ``limit`` Å, or as close as ASE's own run from a start that differs by 1e-15 Å.

    LBFGS amplifies rounding up to a billionfold on some of these structures, ASE's own just the same.
    """
    ours, theirs = PAIRS[name]
    expected = run(theirs, atoms, **options)
    assert np.abs(expected[-1] - expected[0]).max() > 0.01
    distance = np.abs(run(ours, atoms, **options) - expected).max(axis=(1, 2))
    if name == "FIRE" or distance.max() < limit:
        assert distance.max() < limit
        return
    kicked = atoms.copy()
    kicked.positions += 1e-15 * np.random.default_rng(0).normal(size=atoms.positions.shape)
    chaos = np.abs(run(theirs, kicked, **options) - expected).max(axis=(1, 2))
    assert (distance < np.maximum(limit, 100 * np.maximum.accumulate(chaos))).all(), distance
    assert distance[:26].max() < limit


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_steps_are_those_of_ase(name, options, structure):
    assert_steps_of_ase(name, STRUCTURES[structure], **options)


@pytest.mark.parametrize("name", PAIRS)
def test_differentiable_runs_take_the_same_steps(name):
    ours, _ = PAIRS[name]
    atoms = STRUCTURES["cluster"]
    assert np.array_equal(run(ours, atoms, 20), run(ours, atoms, 20, differentiable=True))
    atoms, wrap = STRUCTURES["strained"], runs.cell_filter()
    assert np.array_equal(run(ours, atoms, 20, wrap=wrap), run(ours, atoms, 20, wrap=wrap, differentiable=True))


@pytest.mark.parametrize("options", CELLS.values(), ids=CELLS.keys())
@pytest.mark.parametrize("name", PAIRS)
def test_steps_with_the_cell_are_those_of_ase(name, options):
    assert_steps_of_ase(name, STRUCTURES["strained"], 1e-9, wrap=runs.cell_filter(**options))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("structure", ["silicon", "small"])
def test_steps_with_the_cell_of_other_crystals(name, structure):
    assert_steps_of_ase(name, STRUCTURES[structure], 1e-9, wrap=runs.cell_filter())


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    "constraint",
    [FixAtoms([0, 3]), FixCartesian([1, 2], mask=(True, False, True)), FixBondLengths([(0, 1), (2, 3)])],
    ids=["FixAtoms", "FixCartesian", "FixBondLengths"],
)
def test_constraints_are_honoured_as_in_ase(name, constraint):
    atoms = STRUCTURES["cluster"].copy()
    free = run(PAIRS[name][0], atoms, 20)
    atoms.set_constraint(constraint)
    assert np.abs(run(PAIRS[name][0], atoms, 20) - free).max() > 1e-3
    assert_steps_of_ase(name, atoms)


def test_fixed_atoms_in_a_cell_that_relaxes():
    atoms = STRUCTURES["strained"].copy()
    atoms.set_constraint(FixAtoms([0, 5]))
    wrap = runs.cell_filter()
    expected = run(ase.optimize.FIRE, atoms, wrap=wrap)
    for options in ({}, {"differentiable": True}):
        np.testing.assert_allclose(run(FIRE, atoms, wrap=wrap, **options), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("wrap", [runs.same, UnitCellFilter, StrainFilter])
def test_any_calculator_and_filter_of_ase(wrap):
    atoms = bulk("Cu", a=3.8, cubic=True)
    atoms.rattle(0.1, seed=1)
    expected = run(ase.optimize.FIRE, atoms, 20, wrap=wrap, calc=EMT())
    np.testing.assert_allclose(run(FIRE, atoms, 20, wrap=wrap, calc=EMT()), expected, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.sevenn
@pytest.mark.parametrize(("name", "wrap"), [("FIRE", runs.same), ("LBFGS", runs.same), ("FIRE", runs.cell_filter())])
@pytest.mark.parametrize("crystal", ["Si", "NaCl"])
def test_steps_on_sevennet(crystal, name, wrap):
    potential = pretrained("7net-0", torch.float64)
    atoms = bulk("Si", a=5.6) if crystal == "Si" else bulk("NaCl", "rocksalt", a=5.9, cubic=True)
    atoms.rattle(0.15, seed=2)
    options = {"wrap": wrap, "calc": runs.calculator(potential)}
    expected = run(PAIRS[name][1], atoms, **options)
    assert np.abs(expected[-1] - expected[0]).max() > 0.05
    np.testing.assert_allclose(run(PAIRS[name][0], atoms, **options), expected, rtol=0, atol=1e-8)


def test_gradient_descent_follows_the_force():
    atoms = STRUCTURES["cluster"].copy()
    atoms.calc = runs.calculator()
    expected = [atoms.positions.copy()]
    for _ in range(5):
        atoms.positions += 0.02 * atoms.get_forces()
        expected.append(atoms.positions.copy())
    found = run(GradientDescent, STRUCTURES["cluster"], 5, step_size=0.02, maxstep=None)[:, :-3]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_gradient_descent_with_momentum_and_limit():
    steps = np.diff(run(GradientDescent, STRUCTURES["cluster"], 8, step_size=0.02, momentum=0.5, maxstep=0.03), axis=0)
    longest = np.linalg.norm(steps, axis=2).max(axis=1)
    assert longest.max() < 0.03 + 1e-12
    free = np.diff(run(GradientDescent, STRUCTURES["cluster"], 8, step_size=0.02, momentum=0.5, maxstep=None), axis=0)
    atoms = STRUCTURES["cluster"].copy()
    atoms.calc = runs.calculator()
    atoms.positions += free[0, :-3]
    np.testing.assert_allclose(free[1, :-3], 0.02 * atoms.get_forces() + 0.5 * free[0, :-3], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "options", "culprit"),
    [
        (FIRE, {"dt": 0.0}, "dt must be a positive number"),
        (FIRE, {"dt": torch.tensor(-0.1)}, "dt must be a positive number"),
        (FIRE, {"downhill_check": True}, "downhill_check is not supported here; use ase.optimize.FIRE"),
        (FIRE, {"position_reset_callback": print}, "position_reset_callback"),
        (FIRE, {"maxmove": 0.1}, "maxmove"),
        (LBFGS, {"alpha": -1.0}, "alpha must be a positive number"),
        (LBFGS, {"maxstep": 1.5}, "maxstep=1.5 Å"),
        (LBFGS, {"use_line_search": True}, "use_line_search is not supported here; use ase.optimize.LBFGS"),
        (GradientDescent, {"step_size": float("nan")}, "step_size must be a positive number"),
        (GradientDescent, {"momentum": 1.0}, "momentum must lie between 0 and 1"),
    ],
)
def test_arguments_that_cannot_be_used(optimizer, options, culprit):
    with pytest.raises(InputError, match=culprit):
        optimizer(STRUCTURES["cluster"].copy(), logfile=None, **options)


def test_defaults_of_ase_may_be_spelled_out():
    FIRE(STRUCTURES["cluster"].copy(), logfile=None, downhill_check=False, position_reset_callback=None, maxstep=None)
    LBFGS(STRUCTURES["cluster"].copy(), logfile=None, use_line_search=False, maxstep=None)
