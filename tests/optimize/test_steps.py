"""The step functions themselves: pure, batched, and of bounded memory."""

from __future__ import annotations

import ase.optimize
import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms, FixCartesian

from ase_finetune.errors import InputError
from ase_finetune.optimize.cell import CellOptions
from ase_finetune.optimize.fire import FIREStep
from ase_finetune.optimize.gradient_descent import GradientDescentStep
from ase_finetune.optimize.layout import Layout, safe_sqrt
from ase_finetune.optimize.lbfgs import LBFGSStep
from ase_finetune.optimize.relaxation import Relaxation
from tests import morse
from tests.optimize import runs
from tests.optimize.runs import STRUCTURES, run

METHODS = [
    GradientDescentStep(step_size=0.05, momentum=0.4),
    FIREStep(dt=0.3, Nmin=1),
    LBFGSStep(alpha=20.0, memory=3),
]
LAYOUT = Layout(torch.tensor([0, 0, 1, 1, 1, 0, 1]), 2)


def ids(method):
    return method.name


def some_forces(count, rows=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((rows, 3), generator=generator, dtype=torch.float64) for _ in range(count)]


def follow(method, layout, forces, state=None):
    """Displacements and states of steps at given forces."""
    state = method.start(forces[0], layout) if state is None else state
    displacements, states = [], [state]
    for force in forces:
        displacement, state = method.step(state, force, layout)
        displacements.append(displacement)
        states.append(state)
    return displacements, states


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_steps_do_not_change_what_they_are_given(method):
    forces = some_forces(6)
    _, states = follow(method, LAYOUT, forces)
    copies = [[tensor.clone() for tensor in state.tensors()] for state in states]
    force_copies = [force.clone() for force in forces]
    follow(method, LAYOUT, forces, states[3])
    for state, copied in zip(states, copies, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(state.tensors(), copied, strict=True))
    assert all(torch.equal(one, two) for one, two in zip(forces, force_copies, strict=True))


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_steps_depend_on_nothing_but_their_arguments(method):
    forces = some_forces(8)
    displacements, states = follow(method, LAYOUT, forces)
    again, _ = follow(method, LAYOUT, forces[5:], states[5])
    assert all(torch.equal(one, two) for one, two in zip(displacements[5:], again, strict=True))


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_structures_of_a_batch_do_not_see_each_other(method):
    forces = some_forces(10)
    both, _ = follow(method, LAYOUT, forces)
    for structure in range(2):
        rows = (LAYOUT.owner == structure).nonzero().squeeze(1)
        alone, _ = follow(method, Layout(torch.zeros(len(rows), dtype=torch.int64), 1), [f[rows] for f in forces])
        for one, two in zip(both, alone, strict=True):
            torch.testing.assert_close(one[rows], two, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_selected_structures_keep_their_state(method):
    forces = some_forces(10)
    both, states = follow(method, LAYOUT, forces)
    layout, rows, kept = LAYOUT.select([1])
    assert rows.tolist() == [2, 3, 4, 6]
    selected = states[4].select(rows, kept)
    alone, _ = follow(method, layout, [force[rows] for force in forces[4:]], selected)
    for one, two in zip(both[4:], alone, strict=True):
        torch.testing.assert_close(one[rows], two, rtol=1e-12, atol=1e-14)


def test_lbfgs_remembers_as_many_steps_as_it_may():
    _, states = follow(LBFGSStep(memory=3), LAYOUT, some_forces(8))
    assert [len(state.displacements) for state in states] == [0, 0, 1, 2, 3, 3, 3, 3, 3]
    assert [len(state.curvatures) for state in states] == [0, 0, 1, 2, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_steps_are_limited_as_in_ase(method):
    forces = [1e3 * force for force in some_forces(4)]
    for displacement in follow(method, LAYOUT, forces)[0]:
        length = LAYOUT.norm(displacement) if method.name == "fire" else LAYOUT.longest(displacement)
        torch.testing.assert_close(length, torch.full((2,), 0.2, dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_zero_forces_have_finite_gradients(method):
    forces = [torch.zeros((7, 3), dtype=torch.float64, requires_grad=True) for _ in range(3)]
    displacements, _ = follow(method, LAYOUT, forces)
    assert all(not displacement.detach().any() for displacement in displacements)
    for gradient in torch.autograd.grad(sum(d.sum() for d in displacements), forces, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_gradients_of_steps(method):
    step_size = torch.tensor(float(getattr(method, method.step_parameter)), dtype=torch.float64, requires_grad=True)
    forces = [0.3 * force.requires_grad_() for force in some_forces(4)]

    def displacements(size, *given):
        return tuple(follow(method.with_step_size(size), LAYOUT, given)[0])

    inputs = (step_size, *(force.detach().requires_grad_() for force in forces))
    assert torch.autograd.gradcheck(displacements, inputs, atol=1e-6, rtol=1e-5)


def test_safe_sqrt_has_no_gradient_at_zero():
    squares = torch.tensor([0.0, 4.0], dtype=torch.float64, requires_grad=True)
    roots = safe_sqrt(squares)
    roots.sum().backward()
    assert roots.tolist() == [0.0, 2.0]
    assert squares.grad.tolist() == [0.0, 0.25]


@pytest.mark.parametrize(
    ("build", "culprit"),
    [
        (lambda: FIREStep(dt=-1.0), "dt must be a positive number, got -1"),
        (lambda: FIREStep(finc=0.0), "finc"),
        (lambda: LBFGSStep(memory=0), "memory"),
        (lambda: LBFGSStep(maxstep=2.0), "maxstep=2.0 Å is far too large"),
        (lambda: GradientDescentStep(step_size=0.0), "step_size"),
        (lambda: GradientDescentStep(momentum=-0.1), "momentum must lie between 0 and 1"),
        (lambda: GradientDescentStep(maxstep=0.0), "maxstep"),
    ],
)
def test_hyperparameters_that_cannot_be_used(build, culprit):
    with pytest.raises(InputError, match=culprit):
        build()


def relaxed(method, structures, steps, cell=None):
    """(steps + 1) lists of positions and cells of a batch."""
    relaxation = Relaxation(morse.pretrained().double(), method, structures, cell)
    sizes = [len(atoms) for atoms in structures]
    state, frames = relaxation.start(), []
    for _ in range(steps + 1):
        positions, cells = relaxation.coordinates.structure(state.coordinates)
        parts = zip(positions.split(sizes), cells, strict=True)
        frames.append([torch.cat(pair).detach().numpy() for pair in parts])
        graph, failures = relaxation.graph(state)
        assert graph is not None, failures
        state = relaxation.move(state, relaxation.evaluate(state, graph).forces)
    return [np.array(frame) for frame in zip(*frames, strict=True)]


@pytest.mark.parametrize("name", ["FIRE", "LBFGS"])
def test_a_batch_moves_as_each_structure_in_ase(name):
    method = {"FIRE": FIREStep, "LBFGS": LBFGSStep}[name]()
    atoms = [STRUCTURES["strained"].copy(), STRUCTURES["cluster"].copy(), STRUCTURES["silicon"].copy()]
    atoms[0].set_constraint(FixAtoms([0, 6]))
    atoms[1].set_constraint([FixCartesian(2, mask=(True, False, True)), FixAtoms([0])])
    for one, found in zip(atoms, relaxed(method, atoms, 40), strict=True):
        expected = run(getattr(ase.optimize, name), one, 40)
        np.testing.assert_allclose(found[: len(expected)], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "options",
    [{}, {"mask": [1, 1, 1, 0, 0, 0]}, {"hydrostatic_strain": True}, {"constant_volume": True, "scalar_pressure": 0.1}],
)
def test_a_batch_with_cells_moves_as_each_structure_in_ase(options):
    atoms = [STRUCTURES["strained"].copy(), STRUCTURES["small"].copy()]
    atoms[0].set_constraint(FixAtoms([2]))
    found = relaxed(FIREStep(), atoms, 50, CellOptions(**options))
    for one, ours in zip(atoms, found, strict=True):
        expected = run(ase.optimize.FIRE, one, wrap=runs.cell_filter(**options))
        np.testing.assert_allclose(ours[: len(expected)], expected, rtol=0, atol=1e-9)


def test_lbfgs_with_cells_in_a_batch():
    atoms = [STRUCTURES["strained"], STRUCTURES["small"]]
    for one, ours in zip(atoms, relaxed(LBFGSStep(), atoms, 25, CellOptions()), strict=True):
        expected = run(ase.optimize.LBFGS, one, 25, wrap=runs.cell_filter())
        np.testing.assert_allclose(ours[: len(expected)], expected, rtol=0, atol=1e-9)
