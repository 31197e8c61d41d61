"""Gradients through the steps of the drivers, against central differences of runs of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms, FixCartesian

from tests import helpers, morse
from tests.optimize.recorded import DRIVERS, PLACES, STEPS, changed, derivative, drive, gradients, loss, value
from tests.optimize.runs import STRUCTURES


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("name", "cell"), PLACES.values(), ids=PLACES.keys())
def test_gradient_by_the_parameters(driver, name, cell):
    potential = morse.pretrained().double()
    loss(drive(driver, name, cell, potential=potential, differentiable=True)).backward()
    for label in ("depth", "width", "distance"):
        for element in range(2):
            expected = derivative(
                lambda x, place=(label, element): value(driver, name, cell, potential=changed(potential, *place, x))
            )
            assert float(potential.native[label].grad[element]) == pytest.approx(expected, rel=1e-6, abs=1e-7), label


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("name", "cell"), PLACES.values(), ids=PLACES.keys())
def test_gradient_by_the_start(driver, name, cell):
    made = drive(driver, name, cell, differentiable=True)
    (gradient,) = torch.autograd.grad(loss(made), made.start_positions)
    rng = np.random.default_rng(3)
    for _ in range(3):
        direction = rng.normal(size=gradient.shape)
        expected = derivative(lambda x, d=direction: value(driver, name, cell, shift=x * d))
        assert float((gradient * torch.as_tensor(direction)).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("name", "cell"), PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("gradient", ["adjoint", "unrolled"])
def test_gradient_by_the_step_size(driver, name, cell, gradient):
    label = DRIVERS[driver][0](STRUCTURES["cluster"].copy(), logfile=None).method.step_parameter
    size = float(DRIVERS[driver][1][label])
    step = torch.tensor(size, dtype=torch.float64, requires_grad=True)
    loss(drive(driver, name, cell, differentiable=True, gradient=gradient, **{label: step})).backward()
    expected = derivative(lambda x: value(driver, name, cell, **{label: size + x}), h=1e-5 * size)
    assert float(step.grad) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("name", "cell"), PLACES.values(), ids=PLACES.keys())
def test_adjoint_equals_unrolled_and_a_window_over_all_steps(driver, name, cell):
    made = {
        kind: drive(driver, name, cell, differentiable=True, **options)
        for kind, options in {
            "adjoint": {},
            "unrolled": {"gradient": "unrolled"},
            "all": {"gradient": "truncated", "window": STEPS + 3},
            "last": {"gradient": "truncated", "window": 2},
        }.items()
    }
    found = {kind: gradients(each) for kind, each in made.items()}
    for kind in ("unrolled", "all"):
        for one, two in zip(found["adjoint"], found[kind], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found["adjoint"][0], found["last"][0], rtol=1e-3)
    torch.testing.assert_close(made["adjoint"].positions, made["unrolled"].positions, rtol=0, atol=1e-9)


def test_a_window_has_the_gradient_of_its_steps_alone():
    # Plain gradient descent has no memory: the last steps alone are a run from where they begin.
    options = {"momentum": 0.0, "differentiable": True}
    whole = drive("gradient descent", "cluster", False, gradient="truncated", window=3, **options)
    begin = whole.path.states[STEPS - 3].coordinates.numpy() - STRUCTURES["cluster"].positions
    last = drive("gradient descent", "cluster", False, shift=begin, steps=3, **options)
    for one, two in zip(gradients(whole), gradients(last), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("build", ["sevennet", "mace"])
def test_gradient_through_a_network(request, build):
    if build == "mace":
        request.getfixturevalue("tiny_mace")
        from ase_finetune.potentials.mace import MACEPotential

        potential = MACEPotential(helpers.build_mace()).double()
    else:
        potential = request.getfixturevalue("tiny_sevennet")().double()
    made = drive("fire", "small", True, potential=potential, differentiable=True, steps=3, dt=0.3)
    loss(made).backward()
    largest = max((p for p in potential.parameters() if p.grad is not None), key=lambda p: float(p.grad.abs().max()))
    place = int(largest.grad.abs().argmax())
    expected = float(largest.grad.flatten()[place])
    original = float(largest.detach().flatten()[place])

    def final(change):
        with torch.no_grad():
            largest.view(-1)[place] = original + change
        return value("fire", "small", True, potential=potential, steps=3, dt=0.3)

    assert expected == pytest.approx(derivative(final), rel=1e-6)


@pytest.mark.parametrize("constraint", [FixAtoms([0]), FixCartesian(1, mask=(True, False, False))])
def test_gradient_with_constraints(constraint):
    options = {"constraint": constraint}
    made = drive("lbfgs", "cluster", False, differentiable=True, **options)
    (gradient,) = torch.autograd.grad(loss(made), made.start_positions)
    for atom in (0, 1):
        for axis in range(2):
            shift = np.zeros((5, 3))
            shift[atom, axis] = 1.0
            expected = derivative(lambda x, d=shift: value("lbfgs", "cluster", False, shift=x * d, **options))
            assert float(gradient[atom, axis]) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("name", "cell"), PLACES.values(), ids=PLACES.keys())
def test_energy_and_its_gradient(name, cell):
    potential = morse.pretrained().double()
    made = drive("fire", name, cell, potential=potential, differentiable=True, steps=4)
    assert made.energy.item() == pytest.approx(made.optimizable.get_value(), abs=1e-12)
    made.energy.backward()

    def energy(change):
        moved = changed(potential, "depth", 1, change)
        return drive("fire", name, cell, potential=moved, steps=4).optimizable.get_value()

    assert float(potential.native["depth"].grad[1]) == pytest.approx(derivative(energy), rel=1e-6)
