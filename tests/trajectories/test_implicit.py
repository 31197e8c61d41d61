"""Implicit gradients against central differences of tightly relaxed structures, and against unrolled ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian

from ase_finetune.errors import InputError, TrainingError
from ase_finetune.optimize import CellOptions
from ase_finetune.trajectories.implicit import FixedPointSolver
from ase_finetune.trajectories.losses import StructureLoss, delta_q, rmsd
from ase_finetune.trajectories.rollout import GradientOptions
from ase_finetune.trajectories.structures import Structures
from tests.optimize.recorded import changed, derivative
from tests.optimize.runs import cluster
from tests.trajectories.runs import (
    SHAPES,
    assert_close,
    crystal,
    gradients,
    loss_of,
    potential,
    rattled,
    relaxed,
    run,
    weighted,
)

TIGHT = FixedPointSolver(fmax=1e-10, tolerance=1e-10)
IMPLICIT = GradientOptions("implicit", solver=TIGHT)


def fixed(atoms, *indices):
    atoms = atoms.copy()
    atoms.set_constraint(FixAtoms(indices))
    return atoms


def tetrahedron():
    d = 2.4 / np.sqrt(8)
    atoms = Atoms("Si3O", positions=d * np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]))
    return relaxed(atoms, False)


def partly_fixed():
    atoms = cluster(0)
    atoms.set_constraint([FixCartesian(0, mask=(True, False, True)), FixAtoms([3])])
    return atoms


# A structure near a minimum, and its cell.
CASES = {
    "crystal": (lambda: crystal(3, 0), False),
    "larger crystal": (lambda: crystal(4, 3), False),
    "variable cell": (lambda: crystal(3, 0), True),
    "larger variable cell": (lambda: crystal(4, 0), True),
    "under pressure": (lambda: crystal(3, 1), CellOptions(scalar_pressure=0.05)),
    "volume only": (lambda: crystal(3, 0), CellOptions(hydrostatic_strain=True)),
    "in the plane": (lambda: crystal(4, 0), CellOptions(mask=(1, 1, 0, 0, 0, 1))),
    "fixed atom": (lambda: fixed(crystal(4, 3), 1), False),
    "fixed atom, variable cell": (lambda: fixed(crystal(4, 0), 3), True),
    "fixed atoms, variable cell": (lambda: fixed(crystal(4, 0), 0, 2), True),
    "molecule on three fixed atoms": (lambda: fixed(cluster(0), 0, 3, 4), False),
}


def check(start, cell, loss, method="lbfgs", differences_by="lbfgs", rtol=1e-4):
    """Implicit against unrolled gradients, and central differences of other relaxations; returns both errors."""
    model = potential()
    options = {"cell": cell, "steps": 1500, "fmax": TIGHT.fmax}
    made = run(start, method, model, gradient=IMPLICIT, **options)
    assert made.failed == {}
    found = gradients(made, loss(made.structures))
    unrolled = run(start, method, gradient="unrolled", **options)
    reference = gradients(unrolled, loss(unrolled.structures))
    largest = max(float(gradient.abs().max()) for gradient in reference)
    assert largest > 1e-2
    rolled = max(float((a - b).abs().max()) for a, b in zip(found, reference, strict=True)) / largest
    direction = dict(zip(SHAPES, torch.tensor([(0.3, -0.4), (0.5, 0.2), (-0.2, 0.3)]).double(), strict=True))

    def end(change):  # of a relaxation that takes another path
        atoms = [rattled(one, 9) for one in start]
        other = copy.deepcopy(model)
        with torch.no_grad():
            for label, along in direction.items():
                other.native[label] += change * along
        return loss(run(atoms, differences_by, other, gradient=IMPLICIT, **options).structures).item()

    expected = derivative(end, h=1e-4)
    differences = (
        abs(sum(float((g * direction[label]).sum()) for label, g in zip(SHAPES, found, strict=True)) - expected)
        / largest
    )
    assert differences < rtol
    assert rolled < rtol
    return differences, rolled


# The others take the same code with other options.
QUICK = ("crystal", "larger variable cell", "fixed atom", "molecule on three fixed atoms")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_implicit_equals_differences_and_unrolled(name):
    build, cell = CASES[name]
    check([rattled(relaxed(build(), cell))], cell, weighted)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fire", "gradient descent"])
def test_whatever_the_optimizer(method):
    check([rattled(relaxed(crystal(3, 0), True))], True, weighted, method)


@pytest.mark.parametrize("distance", [rmsd, delta_q])
@pytest.mark.parametrize("build", [lambda: relaxed(cluster(0), False), tetrahedron], ids=["cluster", "tetrahedron"])
def test_molecules_that_may_turn(build, distance):
    atoms = build()
    target = rattled(atoms, 5)
    target.positions *= 1.05
    wanted = Structures.from_atoms([target])
    check([rattled(atoms)], False, lambda ends: distance(ends, wanted, align=True).sum())


@pytest.mark.slow
def test_default_loss_of_crystals():
    start = [rattled(relaxed(crystal(3, 0), True)), rattled(relaxed(crystal(4, 0), True))]
    targets = [rattled(atoms, 3) for atoms in start]
    for atoms in targets:
        atoms.set_cell(atoms.cell[:] * 1.03, scale_atoms=True)
    wanted = Structures.from_atoms(targets)
    check(start, True, lambda ends: StructureLoss()(ends, wanted).sum())


@pytest.mark.parametrize("start", [partly_fixed(), fixed(cluster(0), 0, 3)], ids=["partly", "two atoms"])
def test_molecules_that_turn_about_fixed_atoms(start):
    # The lengths to a fixed atom do not change as the others turn about it.
    def loss(ends):
        apart = (ends.positions - ends.positions[3].detach()).norm(dim=1)[[0, 1, 2]]
        return apart @ torch.tensor([1.0, -0.4, 0.7], dtype=torch.float64)

    check([rattled(relaxed(start, False))], False, loss)


def test_gradient_of_the_final_energy():
    # The energy is stationary in the structure: its gradient is the partial one.
    start = [rattled(relaxed(crystal(3, 0), True))]
    options = {"cell": True, "steps": 1500, "gradient": IMPLICIT}
    made = run(start, "lbfgs", **options)
    found = gradients(made, made.energy().sum())
    for label, gradient in list(zip(SHAPES, found, strict=True))[:2]:
        expected = derivative(
            lambda x, place=label: run(start, "lbfgs", changed(potential(), place, 1, x), **options).energy().item(),
            h=1e-4,
        )
        assert float(gradient[1]) == pytest.approx(expected, rel=1e-6)


def test_guided_adds_the_first_steps():
    start = [rattled(relaxed(crystal(3, 0), True)), rattled(relaxed(crystal(4, 0), True))]
    options = {"cell": True, "steps": 1500}
    made = run(start, "fire", gradient=GradientOptions("guided", window=4, solver=TIGHT), **options)
    short = run(start, "fire", cell=True, steps=4)
    implicit = run(start, "fire", gradient=IMPLICIT, **options)
    assert made.path.num_steps == 4
    for name in ("positions", "cell"):
        assert torch.equal(getattr(made.guide, name), getattr(short.structures, name))
        assert torch.equal(getattr(made.structures, name), getattr(implicit.structures, name))
    of_guide, of_end = gradients(short), gradients(implicit)
    assert_close(gradients(made, weighted(made.guide)), of_guide, 1e-12)
    assert_close(gradients(made), of_end, 1e-12)
    both = gradients(made, weighted(made.guide) + 0.3 * loss_of(made))
    assert_close(both, [a + 0.3 * b for a, b in zip(of_guide, of_end, strict=True)], 1e-12)


@pytest.mark.parametrize("kind", ["implicit", "guided"])
def test_a_rollout_that_does_not_converge_is_told(kind):
    good, slow = relaxed(crystal(3, 0), True), rattled(crystal(4, 1))
    solver = FixedPointSolver(fmax=1e-3)
    made = run([slow, good], "fire", cell=True, steps=10, gradient=GradientOptions(kind, solver=solver))
    assert made.kept == [1]
    message = made.failed[0]
    assert message.startswith("not converged: the largest force is ")
    assert "after 10 steps" in message
    assert f"gradient='{kind}' needs less than 0.001" in message
    assert "allow more steps, use fire or lbfgs, or gradient='adjoint'" in message
    residual = float(message.removeprefix("not converged: the largest force is ").split()[0])
    assert residual > 1e-3
    assert all(gradient.isfinite().all() for gradient in gradients(made, weighted(made.structures)))


def square():
    """Four atoms on a square: a saddle point, since it lowers its energy as a rhombus."""
    atoms = Atoms("Si4", positions=1.2 * np.array([(1.0, 1, 0), (1, -1, 0), (-1, -1, 0), (-1, 1, 0)]))
    (positions,) = (run([atoms], "lbfgs", steps=60, fmax=1e-5).structures.positions.detach().numpy(),)
    atoms.positions = positions
    return atoms


def test_saddle_points_raise():
    made = run([relaxed(crystal(3, 0), False), square()], "fire", gradient=IMPLICIT, fmax=1e-4)
    with pytest.raises(TrainingError, match="structure 1 of the batch: the curvature is negative: it is a saddle"):
        loss_of(made).backward()


def test_saddle_points_can_be_dropped():
    solver = FixedPointSolver(fmax=1e-4, tolerance=1e-10, on_failure="drop")
    options = {"gradient": GradientOptions("implicit", solver=solver)}
    good = [relaxed(crystal(3, 0), False), relaxed(cluster(0), False)]
    made = run([good[0], square(), good[1]], "fire", **options)
    assert made.solver_failures == {}
    found = gradients(made)
    assert list(made.solver_failures) == [1]
    assert "saddle point" in made.solver_failures[1]
    alone = run(good, "fire", **options)
    # The same weights on the atoms that are left.
    rng = np.random.default_rng(7)
    weights = torch.tensor(rng.normal(size=made.structures.positions.shape))[made.structures.batch != 1]
    assert_close(found, gradients(alone, (alone.structures.positions * weights).sum()), 1e-8)


@pytest.mark.parametrize("on_failure", ["raise", "drop"])
def test_equations_that_are_not_solved(on_failure):
    solver = FixedPointSolver(fmax=1e-6, tolerance=1e-8, max_iterations=2, on_failure=on_failure)
    made = run([relaxed(crystal(4, 3), False)], "fire", gradient=GradientOptions("implicit", solver=solver))
    if on_failure == "raise":
        with pytest.raises(TrainingError, match=r"solved to \d\.\de[-+]\d+ only after 2 iterations; relax further"):
            loss_of(made).backward()
        return
    assert all((gradient == 0).all() for gradient in gradients(made))
    assert "after 2 iterations" in made.solver_failures[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fmax": 0.0}, "fmax must be a positive number"),
        ({"tolerance": -1.0}, "tolerance must be a positive number"),
        ({"max_iterations": 0}, "max_iterations must be a positive number"),
        ({"on_failure": "ignore"}, "on_failure must be 'raise' or 'drop', got 'ignore'"),
    ],
)
def test_options_of_the_solver(options, message):
    with pytest.raises(InputError, match=message):
        FixedPointSolver(**options)
