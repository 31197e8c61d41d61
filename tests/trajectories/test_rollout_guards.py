"""Rollouts that explode, converge or cannot be differentiated, and what a rollout keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixBondLength

from ase_finetune.errors import InputError
from ase_finetune.optimize import CellOptions, FIREStep, GradientDescentStep
from ase_finetune.trajectories.implicit import FixedPointSolver
from ase_finetune.trajectories.rollout import GradientOptions, rollout
from tests.optimize.runs import cluster, small_cell, strained
from tests.trajectories.runs import (
    METHODS,
    STEPS,
    assert_close,
    batch,
    gradients,
    loss_of,
    potential,
    relaxed,
    run,
    weighted,
)


def squeezed():
    """Atoms 0.15 Å apart: the first step tears the cell apart."""
    return Atoms("SiO", positions=[(0, 0, 0), (0.15, 0, 0)], cell=[3.0, 3.0, 3.0], pbc=True)


def coincident():
    atoms = small_cell()
    atoms.positions[1] = atoms.positions[0] + 1e-6
    return atoms


WILD = GradientDescentStep(step_size=0.02, momentum=0.5, maxstep=None)


@pytest.mark.parametrize("kind", ["adjoint", "unrolled", "truncated"])
def test_structures_that_explode_are_left_out_and_told(kind):
    good = [small_cell(0), strained(1), small_cell(2)]
    options = {"cell": True, "steps": 5, "gradient": kind}
    made = run([squeezed(), good[0], coincident(), good[1], squeezed(), good[2]], WILD, **options)
    alone = run(good, WILD, **options)
    assert made.kept == [1, 3, 5]
    assert sorted(made.failed) == [0, 2, 4]
    for index in (0, 4):
        assert "volume has changed" in made.failed[index] or "not finite" in made.failed[index]
    assert "coincide" in made.failed[2]
    assert len(made.steps) == len(made.fmax) == 3
    for name in ("positions", "cell", "batch", "pbc", "masses"):
        assert torch.equal(getattr(made.structures, name), getattr(alone.structures, name)), name
    found = gradients(made, weighted(made.structures))
    assert_close(found, gradients(alone), 1e-13)
    assert all(gradient.isfinite().all() for gradient in found)
    assert_close(gradients(made, made.energy().sum()), gradients(alone, alone.energy().sum()), 1e-13)


def test_one_that_explodes_in_the_last_step_is_told_too():
    steps = next(k for k in range(1, 9) if run([squeezed()], WILD, cell=True, steps=k).failed)
    made = run([small_cell(), squeezed()], WILD, cell=True, steps=steps)
    assert made.kept == [0]
    assert list(made.failed) == [1]
    assert made.energy().isfinite().all()


def test_nothing_left():
    made = run([squeezed(), squeezed()], WILD, cell=True)
    assert made.structures is None
    assert made.kept == []
    assert sorted(made.failed) == [0, 1]
    with pytest.raises(InputError, match="no structure is left"):
        made.energy()


def test_forces_that_are_not_finite_are_told():
    model = potential()
    with torch.no_grad():
        model.native["width"][1] = 1500.0  # exp(-width (r - distance)) overflows where silicon atoms are close
    near = Atoms("Si2", positions=[(0, 0, 0), (0, 0, 1.0)])
    far = Atoms("Si2", positions=[(0, 0, 0), (0, 0, 3.9)])
    made = run([far, near], "fire", model)
    assert made.kept == [0]
    assert made.failed == {1: "forces are not finite in step 0"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cell", [False, True])
def test_converged_structures_are_held(method, cell):
    still = relaxed(small_cell(), cell, 1e-6)
    atoms = [still, strained(1)]
    held = run(atoms, method, cell=cell, fmax=1e-3, steps=5)
    assert held.steps == [0, 5]
    assert held.fmax[0] < 1e-3 < held.fmax[1]
    mine = held.structures.batch == 0
    torch.testing.assert_close(held.structures.positions[mine], torch.tensor(still.positions), rtol=0, atol=1e-14)
    # Its gradient is that of no steps, and the other's is as if it were alone.
    assert all((g == 0).all() for g in gradients(held, held.structures.positions[mine].square().sum()))
    other = run(atoms[1:], method, cell=cell, steps=5)
    loss = held.structures.positions[~mine].square().sum()
    assert_close(gradients(held, loss), gradients(other, other.structures.positions.square().sum()), 1e-10)


@pytest.mark.parametrize("kind", ["adjoint", "unrolled"])
def test_a_structure_held_half_way_has_the_gradient_of_the_steps_it_made(kind):
    atoms = [small_cell(0), strained(1)]
    fmax = 0.3
    made = run(atoms, "fire", cell=True, fmax=fmax, steps=40, gradient=kind)
    assert 3 < made.steps[0] < 40
    alone = run(atoms[:1], "fire", cell=True, steps=made.steps[0])
    mine = made.structures.batch == 0
    torch.testing.assert_close(made.structures.positions[mine], alone.structures.positions, rtol=0, atol=1e-10)
    loss = made.structures.positions[mine].square().sum()
    assert_close(gradients(made, loss), gradients(alone, alone.structures.positions.square().sum()), 1e-9)


def test_all_converged_at_the_start():
    made = run([relaxed(small_cell(), True, 1e-6)], "fire", cell=True, fmax=1e-3)
    assert made.steps == [0]
    assert made.path.num_steps == 0
    assert all((gradient == 0).all() for gradient in gradients(made))


class TestClipping:
    def test_bounds_the_growth_of_each_structure(self):
        # Steps that are too long make gradients grow.
        method, options = GradientDescentStep(step_size=0.12, maxstep=None), {"steps": 12}
        atoms = [cluster(0), cluster(1), relaxed(cluster(2), False, 1e-4)]
        free = run(atoms, method, **options)
        loss = loss_of(free)
        (by_end,) = torch.autograd.grad(loss, free.structures.positions, retain_graph=True)
        gradients(free)
        assert free.path.gradient_norms[0] > 2 * by_end.norm()
        clipped = run(atoms, method, gradient=GradientOptions(clip_growth=1.5), **options)
        found = gradients(clipped)
        norms = torch.tensor(clipped.path.gradient_norms)
        assert (norms <= 1.5 * by_end.norm() * (1 + 1e-12)).all()
        assert norms.max() > 1.2 * by_end.norm()
        assert all(gradient.isfinite().all() for gradient in found)

    def test_leaves_what_does_not_grow_as_it_is(self):
        exact = gradients(run(batch(True), "fire", cell=True))
        generous = GradientOptions(clip_growth=1e6)
        assert_close(gradients(run(batch(True), "fire", cell=True, gradient=generous)), exact, 1e-14)

    def test_structures_are_scaled_one_by_one(self):
        # The calm one of the two keeps the gradient it has alone.
        method, options = GradientDescentStep(step_size=0.12, maxstep=None), {"steps": 12}
        calm = Atoms("SiO", positions=[(0, 0, 0), (0, 0, 2.25)])
        clipping = GradientOptions(clip_growth=1.5)
        both = run([cluster(0), calm], method, gradient=clipping, **options)
        alone = run([calm], method, **options)
        mine = both.structures.positions[both.structures.batch == 1]
        expected = gradients(alone, alone.structures.positions.square().sum())
        assert alone.path.gradient_norms[0] < 1.5 * alone.path.gradient_norms[-1]
        assert_close(gradients(both, mine.square().sum()), expected, 1e-12)

    def test_every_method_can_be_clipped(self):
        for method in METHODS:
            made = run(batch(True), method, cell=True, gradient=GradientOptions(clip_growth=0.5))
            gradients(made)
            assert all(np.isfinite(made.path.gradient_norms))


def test_gradient_norms_by_step():
    made = run(batch(False), "fire")
    assert made.path.gradient_norms == []
    gradients(made)
    assert len(made.path.gradient_norms) == STEPS
    window = run(batch(False), "fire", gradient=GradientOptions("truncated", window=3))
    gradients(window)
    assert np.isnan(window.path.gradient_norms).tolist() == [True] * (STEPS - 3) + [False] * 3
    np.testing.assert_allclose(window.path.gradient_norms[-3:], made.path.gradient_norms[-3:], rtol=1e-12)


@pytest.mark.parametrize("kind", ["adjoint", "truncated", "implicit", "guided"])
def test_parameters_changed_before_the_backward_pass(kind):
    model = potential()
    start = [relaxed(small_cell(), False, 1e-6)]
    options = GradientOptions(kind, solver=FixedPointSolver(fmax=1e-3))
    loss = loss_of(run(start, FIREStep(), model, gradient=options, fmax=1e-3 if options.needs_fixed_point else None))
    with torch.no_grad():
        model.native["depth"] *= 1.01
    with pytest.raises(InputError, match="the parameters were changed between the relaxation and its backward pass"):
        loss.backward()


def test_last_steps_are_made_by_all():
    """A structure held since it converged would have no gradient through the last steps."""
    with pytest.raises(InputError, match="leave fmax out, so that all make all steps"):
        run([cluster()], "fire", fmax=0.1, gradient=GradientOptions("truncated", window=2))
    run([cluster()], "fire", fmax=0.1, gradient=GradientOptions("truncated", window=2, window_at="first"))


@pytest.mark.parametrize("kind", ["adjoint", "unrolled", "truncated", "implicit", "guided"])
def test_frozen_parameters(kind):
    model = potential().requires_grad_(False)
    start = [relaxed(small_cell(), False, 1e-6)]
    with pytest.raises(InputError, match="nothing requires a gradient"):
        run(start, "fire", model, gradient=GradientOptions(kind, solver=FixedPointSolver(fmax=1e-3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "bptt"}, "gradient 'bptt' is not known; use one of adjoint, unrolled"),
        ({"window": 0}, "window must be at least 1 step, got 0"),
        ({"window_at": "middle"}, "window_at must be 'last' or 'first', got 'middle'"),
        ({"clip_growth": 0.0}, "clip_growth must be a positive number"),
    ],
)
def test_options_of_the_gradient(options, message):
    with pytest.raises(InputError, match=message):
        GradientOptions(**options)


def test_arguments():
    for steps in (0, -3):
        with pytest.raises(InputError, match=f"at least one step, got steps={steps}"):
            run([cluster()], "fire", steps=steps)
    with pytest.raises(InputError, match="gradient 'exact' is not known"):
        run([cluster()], "fire", gradient="exact")
    with pytest.raises(InputError, match="fmax must be a positive number"):
        run([cluster()], "fire", fmax=-0.1)
    nothing = run([], "fire")
    assert nothing.structures is None
    assert nothing.kept == []


def test_structures_that_cannot_be_used_are_named():
    broken, constrained = small_cell(), small_cell()
    broken.positions[0, 1] = np.nan
    constrained.set_constraint(FixBondLength(0, 1))
    with pytest.raises(InputError, match=r"structure 1: position of atom 0 \(Si\) is not finite"):
        run([small_cell(), broken], "fire")
    with pytest.raises(InputError, match=r"structure 1: the constraint FixBondLengths? is not supported"):
        run([small_cell(), constrained], "fire")
    with pytest.raises(InputError, match="structure 1 has no periodic cell"):
        run([small_cell(), cluster()], "fire", cell=True)
    with pytest.raises(InputError, match="structure 1: atom 0 is U"):
        run([small_cell(), Atoms("U")], "fire")


def test_structures_given_are_not_changed():
    atoms = batch(True)
    before = [one.copy() for one in atoms]
    gradients(rollout(atoms, potential(), METHODS["lbfgs"](), steps=4, cell=CellOptions()))
    assert atoms == before


def nodes(tensor):
    """Number of operations behind a tensor."""
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)


@pytest.mark.parametrize("kind", ["adjoint", "truncated", "implicit"])
def test_no_graph_is_kept(kind):
    count = {}
    for steps in (60, 80):
        start = batch(True) if kind != "implicit" else [relaxed(small_cell(), True, 1e-6)]
        options = GradientOptions(kind, solver=FixedPointSolver(fmax=1e-3))
        made = run(start, "fire", cell=True, steps=steps, gradient=options)
        count[steps] = nodes(made.structures.positions)
        for state in made.path.states:
            assert not any(tensor.requires_grad for tensor in state.tensors())
        for graph in made.path.graphs:
            assert not graph.positions.requires_grad
    assert count[60] == count[80] < 40


def test_positions_are_all_that_grows_with_the_steps():
    # Edges are shared by the steps while a neighbour list is valid.
    made = run(batch(True), "fire", cell=True, steps=20, skin=2.0)
    assert len({id(graph.edge_index) for graph in made.path.graphs}) < 6
    assert len(made.path.states) == 21
    long, short = (nodes(run(batch(True), "fire", steps=k, gradient="unrolled").structures.positions) for k in (9, 3))
    assert long > 2 * short
