"""Gradients through rollouts against central differences in float64, and against each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms

from ase_finetune.optimize import GradientDescentStep
from ase_finetune.optimize.adjoint import differentiate
from ase_finetune.optimize.relaxation import RelaxationState
from ase_finetune.trajectories.rollout import GradientOptions
from tests import helpers
from tests.optimize.recorded import changed, derivative
from tests.optimize.runs import small_cell, strained
from tests.trajectories.runs import (
    METHODS,
    SHAPES,
    STEPS,
    along,
    assert_close,
    batch,
    directions,
    gradients,
    loss_of,
    moved,
    potential,
    run,
    weighted,
)

CELLS = pytest.mark.parametrize("cell", [False, True], ids=["fixed", "cell"])
ALL_METHODS = pytest.mark.parametrize("method", METHODS)


def build(name, request):
    """A small potential of another kind, in float64, whose forces are of the order of 1 eV/Å."""
    if name == "mace":
        request.getfixturevalue("tiny_mace")
        from ase_finetune.potentials.mace import MACEPotential

        return MACEPotential(helpers.build_mace(seed=3)).double()
    return request.getfixturevalue("tiny_sevennet")(seed=3, scale=200.0).double()


@CELLS
@ALL_METHODS
def test_gradient_by_the_parameters(method, cell):
    model = potential()
    found = gradients(run(batch(cell), method, model, cell=cell))
    for label, gradient in zip(SHAPES, found, strict=True):
        for element in range(2):
            expected = derivative(
                lambda x, place=(label, element): loss_of(
                    run(batch(cell), method, changed(model, *place, x), cell=cell)
                ).item()
            )
            assert float(gradient[element]) == pytest.approx(expected, rel=1e-6, abs=1e-7), label


def walk(path, rows, steps):
    """Coordinates after some steps from given ones, made anew."""
    relaxation = path.relaxation
    state = RelaxationState(rows, relaxation.method.start(rows, relaxation.coordinates.layout))
    for _ in range(steps):
        graph, failures = relaxation.graph(state)
        assert failures == {}
        state = relaxation.move(state, relaxation.evaluate(state, graph).forces)
    return state.coordinates


@CELLS
@ALL_METHODS
def test_gradient_by_the_start(method, cell):
    path = run(batch(cell), method, cell=cell).path
    rows = path.states[0].coordinates.clone().requires_grad_()
    start = RelaxationState(rows, path.relaxation.method.start(rows.detach(), path.relaxation.coordinates.layout))
    rng = np.random.default_rng(3)
    weights = torch.tensor(rng.normal(size=rows.shape))
    found = {}
    for unrolled in (False, True):
        final = differentiate(path, start, unrolled=unrolled).coordinates
        (found[unrolled],) = torch.autograd.grad((final * weights).sum(), rows)
    torch.testing.assert_close(found[False], found[True], rtol=1e-10, atol=1e-11)
    for _ in range(2):
        direction = torch.tensor(rng.normal(size=rows.shape))
        expected = derivative(
            lambda x, d=direction: float((walk(path, (rows + x * d).detach(), STEPS) * weights).sum())
        )
        assert float((found[False] * direction).sum()) == pytest.approx(expected, rel=1e-6)


@CELLS
@ALL_METHODS
def test_gradient_by_the_step_size(method, cell):
    made = METHODS[method]()
    size = float(getattr(made, made.step_parameter))
    found = {}
    for kind in ("adjoint", "unrolled"):
        step = torch.tensor(size, dtype=torch.float64, requires_grad=True)
        loss_of(run(batch(cell), made.with_step_size(step), cell=cell, gradient=kind)).backward()
        found[kind] = float(step.grad)
    expected = derivative(
        lambda x: loss_of(run(batch(cell), made.with_step_size(size + x), cell=cell)).item(), h=1e-5 * size
    )
    assert found["adjoint"] == pytest.approx(expected, rel=1e-6)
    assert found["unrolled"] == pytest.approx(found["adjoint"], rel=1e-10)


def test_the_step_size_alone_is_enough():
    model = potential().requires_grad_(False)
    step = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    loss_of(run(batch(True), GradientDescentStep(step_size=step), model, cell=True)).backward()
    assert step.grad != 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["sevennet", "mace"])
@pytest.mark.parametrize(("method", "cell"), [("fire", True), ("lbfgs", False), ("gradient descent", True)])
def test_gradients_through_networks(request, name, method, cell):
    model = build(name, request)
    atoms = [small_cell(0), small_cell(1)]
    options = {"cell": cell, "steps": 3}
    found = {}
    for kind in ("adjoint", "unrolled"):
        model.zero_grad()
        loss_of(run(atoms, method, model, gradient=kind, **options)).backward()
        found[kind] = {label: p.grad.clone() for label, p in model.named_parameters() if p.grad is not None}
    assert found["adjoint"].keys() == found["unrolled"].keys()
    largest = max(float(gradient.abs().max()) for gradient in found["unrolled"].values())
    for label, gradient in found["adjoint"].items():
        torch.testing.assert_close(gradient, found["unrolled"][label], rtol=1e-10, atol=1e-10 * largest)
    direction = directions(model)
    expected = derivative(lambda x: loss_of(run(atoms, method, moved(model, direction, x), **options)).item(), h=1e-4)
    assert abs(expected) > 1e-3
    assert along(model, direction) == pytest.approx(expected, rel=1e-6)


@CELLS
@ALL_METHODS
def test_adjoint_equals_unrolled(method, cell):
    found = {kind: run(batch(cell), method, cell=cell, steps=15, gradient=kind) for kind in ("adjoint", "unrolled")}
    assert_close(gradients(found["adjoint"]), gradients(found["unrolled"]), 1e-10)
    for name in ("positions", "cell"):
        one, two = (getattr(made.structures, name) for made in found.values())
        torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


@CELLS
def test_gradients_hold_where_neighbours_change(cell):
    # A skin that is soon used up: lists are rebuilt on the way, also between forward and backward.
    options = {"cell": cell, "steps": 12}
    found = [gradients(run(batch(cell), "fire", skin=skin, **options)) for skin in (0.0, 0.1, 1.5)]
    assert_close(found[1], found[0], 1e-10)
    assert_close(found[2], found[0], 1e-10)


def test_fixed_atoms():
    atoms = strained(1)
    atoms.set_constraint(FixAtoms([0, 2, 5]))
    for cell in (False, True):
        made = run([atoms], "fire", cell=cell)
        if not cell:
            start = torch.tensor(atoms.positions)
            assert torch.equal(made.structures.positions[[0, 2, 5]], start[[0, 2, 5]])
        found = gradients(made)[0]
        expected = derivative(
            lambda x, c=cell: loss_of(run([atoms], "fire", changed(potential(), "depth", 1, x), cell=c)).item()
        )
        assert float(found[1]) == pytest.approx(expected, rel=1e-6)


@CELLS
def test_structures_in_a_batch_have_the_gradients_they_have_alone(cell):
    atoms = batch(cell)
    together = run(atoms, "lbfgs", cell=cell)
    owner = together.structures.batch
    for k, one in enumerate(atoms):
        alone = run([one], "lbfgs", cell=cell)
        mine = (together.structures.positions[owner == k].square().sum(), alone.structures.positions.square().sum())
        assert_close(gradients(together, mine[0]), gradients(alone, mine[1]), 1e-9)


@CELLS
def test_energy_of_the_end(cell):
    model = potential()
    made = run(batch(cell), "fire", model, cell=cell)
    weights = torch.tensor([1.0, -0.7, 0.4][: len(batch(cell))], dtype=torch.float64)
    energy = made.energy()
    assert energy.shape == weights.shape
    found = gradients(made, (energy * weights).sum())

    def value(change, label, element):
        end = run(batch(cell), "fire", changed(model, label, element, change), cell=cell)
        return (end.energy() * weights).sum().item()

    for label, gradient in zip(SHAPES, found, strict=True):
        expected = derivative(lambda x, place=label: value(x, place, 1))
        assert float(gradient[1]) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_single_precision_potentials():
    exact = gradients(run(batch(True), "fire", cell=True))
    single = gradients(run(batch(True), "fire", potential().float(), cell=True))
    assert all(gradient.dtype == torch.float32 for gradient in single)
    assert_close([gradient.double() for gradient in single], exact, 1e-3)


class TestTruncated:
    @CELLS
    @ALL_METHODS
    def test_a_window_over_all_steps_is_exact(self, method, cell):
        exact = gradients(run(batch(cell), method, cell=cell))
        for window, at in ((STEPS, "last"), (STEPS + 5, "last"), (STEPS, "first")):
            options = GradientOptions("truncated", window=window, window_at=at)
            assert_close(gradients(run(batch(cell), method, cell=cell, gradient=options)), exact, 1e-12)

    @CELLS
    @ALL_METHODS
    def test_the_last_steps_from_a_start_without_gradient(self, method, cell):
        window = 3
        made = run(batch(cell), method, cell=cell, gradient=GradientOptions("truncated", window=window))
        state = made.path.states[STEPS - window].detached()
        for step in range(STEPS - window, STEPS):
            state = made.path.replay(step, state)
        positions, cells = made.path.relaxation.coordinates.structure(state.coordinates)
        reference = dataclasses.replace(made.structures, positions=positions, cell=cells)
        found = gradients(made)
        assert_close(found, gradients(made, weighted(reference)), 1e-10)
        exact = gradients(run(batch(cell), method, cell=cell))
        assert not torch.allclose(found[0], exact[0], rtol=1e-3)

    @pytest.mark.parametrize("window", [1, 3])
    @ALL_METHODS
    def test_the_first_steps_pass_the_gradient_over_the_others(self, method, window):
        # The loss is linear in the positions, so its gradient by them is the same after any step.
        options = GradientOptions("truncated", window=window, window_at="first")
        found = gradients(run(batch(False), method, gradient=options))
        assert_close(found, gradients(run(batch(False), method, steps=window)), 1e-10)
