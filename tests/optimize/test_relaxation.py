from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from ase import Atoms
from ase.constraints import FixAtoms

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph
from ase_finetune.optimize import CellOptions, FIREStep, GradientDescentStep, LBFGSStep
from ase_finetune.optimize.cell import exponential, logarithmic_force, series_exponential
from ase_finetune.optimize.relaxation import LARGEST_DISPLACEMENT, LARGEST_VOLUME_RATIO, Relaxation
from tests import morse
from tests.optimize.runs import cluster, small_cell, strained

METHODS = {
    "fire": FIREStep(dt=0.15, Nmin=2),
    "lbfgs": LBFGSStep(memory=3),
    "gradient descent": GradientDescentStep(step_size=0.03, momentum=0.5),
}
CELLS = {"fixed": None, "variable": CellOptions()}


def potential(dtype=torch.float64):
    return morse.pretrained().to(dtype)


def crystals():
    fixed = strained(2)
    fixed.set_constraint(FixAtoms([1, 3]))
    return [small_cell(0), strained(1), fixed, small_cell(3)]


def advance(relaxation, state, steps):
    for _ in range(steps):
        graph, failures = relaxation.graph(state)
        assert failures == {}
        state = relaxation.move(state, relaxation.evaluate(state, graph).forces)
    return state


def alone(atoms, method, cell, steps):
    relaxation = Relaxation(potential(), method, [atoms], cell)
    return relaxation, advance(relaxation, relaxation.start(), steps)


def parts(relaxation, state):
    """Positions and cell of each structure of a batch."""
    positions, cells = relaxation.coordinates.structure(state.coordinates)
    owner = relaxation.coordinates.layout.owner[: len(positions)]
    return [(positions[owner == k], cells[k]) for k in range(relaxation.coordinates.layout.count)]


def assert_like_alone(relaxation, state, atoms, method, cell, steps):
    found = parts(relaxation, state)
    assert len(found) == len(atoms)
    for (positions, own_cell), one, k in zip(found, atoms, steps, strict=True):
        ((expected, expected_cell),) = parts(*alone(one, method, cell, k))
        torch.testing.assert_close(positions, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(own_cell, expected_cell, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_batch_is_its_structures_one_by_one(method, cell):
    atoms = crystals()
    relaxation = Relaxation(potential(), method, atoms, cell)
    state = advance(relaxation, relaxation.start(), 6)
    assert_like_alone(relaxation, state, atoms, method, cell, [6] * 4)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_structures_leave_and_join_in_the_middle(method, cell):
    # LBFGS: histories of 2 (full), 1 and 0 steps come together, and go on beyond the memory.
    atoms = crystals()
    relaxation = Relaxation(potential(), method, atoms[:3], cell)
    state = advance(relaxation, relaxation.start(), 5)
    chosen, rows, kept = relaxation.select([2, 0])
    state = state.select(rows, kept)
    assert_like_alone(chosen, state, [atoms[0], atoms[2]], method, cell, [5, 5])
    other, begun = alone(atoms[3], method, cell, 2)
    both, order = chosen.joined(other)
    state = state.joined(begun, order)
    fresh = Relaxation(potential(), method, [atoms[1]], cell)
    all_three, order = both.joined(fresh)
    state = state.joined(fresh.start(), order)
    mixed = [atoms[0], atoms[2], atoms[3], atoms[1]]
    assert_like_alone(all_three, state, mixed, method, cell, [5, 5, 2, 0])
    state = advance(all_three, state, 4)
    assert_like_alone(all_three, state, mixed, method, cell, [9, 9, 6, 4])


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_selecting_what_has_joined_gives_it_back(method, cell):
    atoms = crystals()
    one = Relaxation(potential(), method, atoms[:2], cell)
    two = Relaxation(potential(), method, atoms[2:], cell)
    mine, theirs = advance(one, one.start(), 3), advance(two, two.start(), 3)
    both, order = one.joined(two)
    joint = mine.joined(theirs, order)
    for wanted, original, kept in ((mine, one, [0, 1]), (theirs, two, [2, 3])):
        chosen, rows, structures = both.select(kept)
        again = joint.select(rows, structures)
        for a, b in zip(again.tensors(), wanted.tensors(), strict=True):
            assert torch.equal(a, b)
        for name in ("cell0", "free", "factor"):
            assert torch.equal(getattr(chosen.coordinates, name), getattr(original.coordinates, name))
        assert torch.equal(chosen.coordinates.layout.owner, original.coordinates.layout.owner)
        assert torch.equal(chosen.start().coordinates, original.start().coordinates)


def test_states_are_made_of_tensors():
    relaxation = Relaxation(potential(), METHODS["lbfgs"], crystals(), CellOptions())
    state = advance(relaxation, relaxation.start(), 3)
    tensors = state.tensors()
    assert tensors[0] is state.coordinates
    again = state.with_tensors(tensors)
    assert all(a is b for a, b in zip(again.tensors(), tensors, strict=True))
    assert type(again.method) is type(state.method)
    traced = state.with_tensors([t.clone().requires_grad_(t.is_floating_point()) * 1 for t in tensors])
    assert any(tensor.requires_grad for tensor in traced.tensors())
    assert not any(tensor.requires_grad for tensor in traced.detached().tensors())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_scaling_acts_structure_by_structure(method):
    relaxation = Relaxation(potential(), method, crystals(), CellOptions())
    state = advance(relaxation, relaxation.start(), 3)
    layout = relaxation.coordinates.layout
    factor = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64)
    scaled = state.with_tensors(state.scaled(state.tensors(), factor, layout))
    for k in range(4):
        _, rows, structures = relaxation.select([k])
        own, original = scaled.select(rows, structures), state.select(rows, structures)
        for a, b in zip(own.tensors(), original.tensors(), strict=True):
            torch.testing.assert_close(a, b * factor[k] if b.is_floating_point() else b)


def test_structures_that_are_not_active_stay():
    relaxation = Relaxation(potential(), METHODS["fire"], crystals(), CellOptions())
    state = advance(relaxation, relaxation.start(), 2)
    graph, _ = relaxation.graph(state)
    active = torch.tensor([True, False, True, False])
    moved = relaxation.move(state, relaxation.evaluate(state, graph).forces, active)
    still = torch.tensor([bool(torch.equal(a, b)) for a, b in _pairs(relaxation, state, moved)])
    assert torch.equal(still, ~active)


def _pairs(relaxation, one, two):
    for k in range(relaxation.coordinates.layout.count):
        _, rows, _ = relaxation.select([k])
        yield one.coordinates[rows], two.coordinates[rows]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("grown", r"^the cell's volume has changed by a factor of 6\.05$"),
        ("collapsed", r"^the cell's volume has changed by a factor of 0\.165$"),
        ("infinite", "not finite"),
        ("nan", "not finite"),
        ("far", r"^an atom has moved by 1\.2e\+03 Å$"),
        ("coincide", "coincide"),
    ],
)
def test_a_structure_that_has_exploded_is_told(change, reason):
    assert LARGEST_VOLUME_RATIO < 6
    assert LARGEST_DISPLACEMENT < 1200
    relaxation = Relaxation(potential(), METHODS["fire"], crystals(), CellOptions())
    state = relaxation.start()
    rows = state.coordinates.clone()
    atom = int((relaxation.coordinates.layout.owner == 1).nonzero()[0])
    of_cell = relaxation.coordinates.num_atoms + 3
    if change in ("grown", "collapsed"):
        rows[of_cell, 0] = (1.8 if change == "grown" else -1.8) * 8
    elif change == "infinite":
        rows[of_cell, 0] = 1e6
    elif change == "coincide":
        rows[atom] = rows[atom + 1] + 1e-6
    else:
        rows[atom, 2] += float("nan") if change == "nan" else 1200.0
    graph, failures = relaxation.graph(state.with_tensors([rows, *state.method.tensors()]))
    assert graph is None
    assert list(failures) == [1]
    with pytest.raises(InputError, match=reason):
        raise InputError(failures[1])
    assert relaxation.graph(state)[1] == {}


def test_an_explosion_is_measured_from_the_start_after_leaving_the_batch():
    relaxation = Relaxation(potential(), METHODS["fire"], crystals(), CellOptions())
    far = crystals()[3]
    far.positions += 900.0
    both, order = relaxation.joined(Relaxation(potential(), METHODS["fire"], [far], CellOptions()))
    state = relaxation.start().joined(Relaxation(potential(), METHODS["fire"], [far], CellOptions()).start(), order)
    assert both.graph(state)[1] == {}
    chosen, rows, kept = both.select([0, 4])
    assert chosen.graph(state.select(rows, kept))[1] == {}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_single_precision_potentials(cell):
    # Coordinates, forces and the optimizer stay in float64, so small steps are not lost.
    relaxation = Relaxation(potential(torch.float32), METHODS["fire"], crystals(), cell)
    state = relaxation.start()
    graph, _ = relaxation.graph(state)
    evaluation = relaxation.evaluate(state, graph)
    assert evaluation.prediction.energy.dtype == torch.float32
    assert state.coordinates.dtype == evaluation.forces.dtype == evaluation.fmax.dtype == torch.float64
    exact = Relaxation(potential(), METHODS["fire"], crystals(), cell)
    expected = exact.evaluate(exact.start(), exact.graph(exact.start())[0])
    torch.testing.assert_close(evaluation.forces, expected.forces, rtol=1e-4, atol=1e-4)
    final = advance(relaxation, state, 5)
    torch.testing.assert_close(final.coordinates, advance(exact, exact.start(), 5).coordinates, rtol=0, atol=1e-4)
    assert all(t.dtype == torch.float64 for t in final.tensors() if t.is_floating_point())


def test_gradients_reach_the_parameters_of_a_single_precision_potential():
    single = potential(torch.float32)
    relaxation = Relaxation(single, METHODS["fire"], crystals(), CellOptions())
    state = relaxation.start()
    graph, _ = relaxation.graph(state)
    forces = relaxation.evaluate(state, graph, create_graph=True).forces
    (gradient,) = torch.autograd.grad(forces.square().sum(), single.native["depth"])
    assert gradient.dtype == torch.float32
    assert (gradient.abs() > 0).all()


def test_evaluation_of_a_state():
    atoms = crystals()
    relaxation = Relaxation(potential(), METHODS["fire"], atoms)
    state = relaxation.start()
    graph, _ = relaxation.graph(state)
    evaluation = relaxation.evaluate(state, graph)
    assert not evaluation.forces.requires_grad
    fixed = relaxation.coordinates.free == 0
    assert (evaluation.forces[fixed] == 0).all()
    for k, one in enumerate(atoms):
        direct = potential().predict(AtomGraph.from_atoms(one, 4.0))
        assert float(evaluation.energy[k]) == pytest.approx(float(direct.energy), abs=1e-10)
        free = np.ones(len(one), dtype=bool)
        free[one.constraints[0].index if one.constraints else []] = False
        expected = direct.forces.numpy()[free]
        assert float(evaluation.fmax[k]) == pytest.approx(np.linalg.norm(expected, axis=1).max(), abs=1e-10)


def test_structures_are_named_in_errors():
    with pytest.raises(InputError, match="structure 1 has no periodic cell"):
        Relaxation(potential(), METHODS["fire"], [strained(), cluster()], CellOptions())


def test_the_structures_given_are_not_changed():
    atoms = [strained(0), Atoms("Si2", positions=[(0, 0, 0), (0, 0, 2.0)])]
    before = [one.copy() for one in atoms]
    relaxation = Relaxation(potential(), METHODS["lbfgs"], atoms)
    advance(relaxation, relaxation.start(), 4)
    assert atoms == before


@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.01, 0.049, 0.3, 2.0])
def test_exponentials_of_one_matrix_are_exact(size):
    # torch's own are not, see exponential(); the reference is scipy's.
    rng = np.random.default_rng(1)
    for _ in range(5):
        matrix, change = rng.normal(size=(2, 3, 3))
        matrix *= size / np.abs(matrix).sum(axis=0).max()
        traced = torch.tensor(matrix[None], requires_grad=True)
        found = exponential(traced)
        (gradient,) = torch.autograd.grad((found[0] * torch.tensor(change)).sum(), traced)
        np.testing.assert_allclose(found[0].detach(), scipy.linalg.expm(matrix), rtol=0, atol=1e-14)
        adjoint = scipy.linalg.expm_frechet(matrix.T, change, compute_expm=False)
        np.testing.assert_allclose(gradient[0], adjoint, rtol=0, atol=1e-13)
        force = logarithmic_force(torch.tensor(matrix[None]), torch.eye(3).double()[None], torch.tensor(change[None]))
        np.testing.assert_allclose(force[0], adjoint, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [0.0, 1e-6, 0.05, 1.0, 3.0])
def test_exponentials_without_reading_back(size):
    # As a GPU takes them; the reference is torch's own, of several matrices.
    rng = np.random.default_rng(2)
    matrices, change = torch.tensor(rng.normal(size=(2, 5, 6, 6)))
    matrices *= size / torch.linalg.matrix_norm(matrices, ord=1)[:, None, None]
    results = []
    for function in (torch.matrix_exp, series_exponential):
        traced = matrices.clone().requires_grad_()
        found = function(traced)
        results.append((found.detach(), *torch.autograd.grad((found * change).sum(), traced)))
    scale = float(results[0][0].abs().max())
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-14 * scale)
