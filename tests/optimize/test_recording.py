"""What a differentiable driver keeps and gives, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.constraints import FixBondLength, FixCartesian
from ase.filters import FrechetCellFilter, UnitCellFilter

from ase_finetune import FinetunedCalculator
from ase_finetune.errors import InputError
from ase_finetune.optimize import FIRE, GradientDescent
from tests import morse
from tests.optimize import runs
from tests.optimize.recorded import PLACES, derivative, drive, gradients, loss, weights
from tests.optimize.runs import STRUCTURES


@pytest.mark.parametrize("gradient", ["adjoint", "unrolled"])
@pytest.mark.parametrize(("name", "cell"), PLACES.values(), ids=PLACES.keys())
def test_structures_that_need_no_step(name, cell, gradient):
    made = drive("fire", name, cell, differentiable=True, gradient=gradient, steps=0)
    assert made.path.num_steps == 0
    torch.testing.assert_close(made.positions, made.start_positions, rtol=0, atol=1e-14)
    made.positions.square().sum().backward()
    torch.testing.assert_close(made.start_positions.grad, 2 * made.start_positions.detach(), rtol=0, atol=1e-12)


def test_positions_are_where_the_atoms_are_and_follow_further_steps():
    made = drive("fire", "small", True, differentiable=True, steps=4)
    for steps in (0, 3):
        made.run(fmax=0.0, steps=steps)
        assert made.positions.dtype == made.cell.dtype == torch.float64
        np.testing.assert_allclose(made.positions.detach(), made.atoms.atoms.positions, rtol=0, atol=1e-12)
        np.testing.assert_allclose(made.cell.detach(), made.atoms.atoms.cell[:], rtol=0, atol=1e-12)
    assert made.positions is made.positions
    loss(made).backward()
    assert len(made.path.gradient_norms) == made.path.num_steps == 7
    assert np.isfinite(made.path.gradient_norms).all()


@pytest.mark.parametrize("gradient", ["adjoint", "unrolled"])
def test_losses_may_be_differentiated_one_after_the_other(gradient):
    made = drive("lbfgs", "small", True, differentiable=True, gradient=gradient)
    one, two = gradients(made), gradients(made)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_filter_that_starts_deformed():
    """The coordinates count from the filter's original cell, and so do the gradients."""
    atoms = STRUCTURES["small"].copy()
    original = atoms.cell.copy()
    stretched = original[:] @ np.array([[1.05, 0.02, 0], [0.01, 0.97, 0], [0, 0.04, 1.02]])

    def begun(shift, **options):
        moved = atoms.copy()
        moved.calc = runs.calculator()
        filtered = FrechetCellFilter(moved)
        moved.set_cell(stretched, scale_atoms=True)
        moved.positions += shift
        made = FIRE(filtered, logfile=None, **options)
        made.run(fmax=0.0, steps=8)
        return made

    made = begun(0.0, differentiable=True)
    np.testing.assert_allclose(made.positions.detach(), made.atoms.atoms.positions, rtol=0, atol=1e-11)
    np.testing.assert_allclose(made.cell.detach(), made.atoms.atoms.cell[:], rtol=0, atol=1e-11)
    (gradient,) = torch.autograd.grad(loss(made), made.start_positions)
    direction = np.random.default_rng(1).normal(size=(2, 3))
    on_atoms, on_cell = weights(2, True)

    def final(x):
        moved = begun(x * direction).atoms.atoms
        return (moved.positions * on_atoms).sum() + (moved.cell[:] * on_cell).sum()

    assert float((gradient * torch.as_tensor(direction)).sum()) == pytest.approx(derivative(final), rel=1e-6)


def test_what_cannot_be_differentiated():
    def attempt(atoms, wrap=runs.same):
        FIRE(wrap(atoms), logfile=None, differentiable=True)

    atoms = STRUCTURES["small"].copy()
    atoms.calc = FinetunedCalculator([morse.pretrained(), morse.truth()], device="cpu")
    with pytest.raises(InputError, match="is an ensemble of 2"):
        attempt(atoms)
    atoms.calc = runs.calculator()
    with pytest.raises(InputError, match="not UnitCellFilter"):
        attempt(atoms, UnitCellFilter)
    with pytest.raises(InputError, match=r"mask .* must free with every shear both of its axes"):
        attempt(atoms, runs.cell_filter(mask=[1, 1, 0, 1, 0, 0]))
    with pytest.raises(InputError, match="with two shears the third"):
        attempt(atoms, runs.cell_filter(mask=[1, 1, 1, 1, 1, 0]))
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(InputError, match="FixBondLengths is not supported"):
        attempt(atoms)
    atoms.set_constraint(FixCartesian(0))
    with pytest.raises(InputError, match="FixCartesian cannot be combined with a cell that relaxes"):
        attempt(atoms, FrechetCellFilter)


def test_atoms_moved_by_others_are_noticed():
    made = drive("fire", "small", True, differentiable=True, steps=2)
    made.atoms.atoms.positions[0] += 0.1
    with pytest.raises(InputError, match=r"after 2 steps of FIRE: the structure is .* from where the optimizer left"):
        made.run(fmax=0.0, steps=1)


def test_parameters_changed_by_others_are_noticed():
    potential = morse.pretrained().double()
    made = drive("fire", "cluster", False, potential=potential, differentiable=True, steps=2)
    pending = loss(made)
    with torch.no_grad():
        potential.native["depth"].mul_(1.1)
    with pytest.raises(InputError, match="changed between the relaxation and its backward pass"):
        pending.backward()
    made.run(fmax=1e9, steps=1)
    with pytest.raises(InputError, match="changed since the relaxation began; relax again"):
        made.run(fmax=0.0, steps=1)


def test_a_calculator_that_was_trained_meanwhile_is_asked_again():
    potential = morse.pretrained().double()
    atoms = STRUCTURES["cluster"].copy()
    atoms.calc = runs.calculator(potential)
    before = atoms.get_potential_energy()
    with torch.no_grad():
        potential.native["depth"].mul_(1.1)
    FIRE(atoms, logfile=None, differentiable=True)
    assert abs(atoms.get_potential_energy() - before) > 0.01


def test_a_trainable_step_size_does_not_start_from_a_file(tmp_path):
    atoms = STRUCTURES["cluster"].copy()
    atoms.calc = runs.calculator()
    FIRE(atoms, logfile=None, restart=tmp_path / "state.json").run(fmax=0.0, steps=1)
    with pytest.raises(InputError, match="cannot start from a restart file"):
        FIRE(
            atoms,
            logfile=None,
            restart=tmp_path / "state.json",
            dt=torch.tensor(0.1, requires_grad=True),
            differentiable=True,
        )


def test_a_cell_that_collapses_stops_the_recording():
    atoms = STRUCTURES["small"].copy()
    atoms.calc = runs.calculator()
    wrap = runs.cell_filter(scalar_pressure=20.0, exp_cell_factor=1.0)
    with pytest.raises(InputError, match=r"after \d+ steps of GradientDescent: the cell's volume has changed by"):
        GradientDescent(wrap(atoms), logfile=None, differentiable=True, step_size=1.0).run(fmax=0.0, steps=50)
