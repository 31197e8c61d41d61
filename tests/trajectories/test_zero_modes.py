"""Motions without energy: how many there are, and that the Hessian vanishes along them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian

from ase_finetune.optimize import CellOptions
from ase_finetune.optimize.relaxation import RelaxationState
from ase_finetune.trajectories.zero_modes import zero_modes
from tests.optimize.runs import cluster
from tests.trajectories.runs import crystal, relaxation_of


def fixed(atoms, *constraints):
    atoms.set_constraint(list(constraints))
    return atoms


def slab():
    atoms = crystal(4, 0)
    atoms.pbc = (True, True, False)
    return atoms


FREE = CellOptions()
# A structure, its cell, and how many motions cost nothing.
CASES = {
    "crystal": (lambda: crystal(3, 0), None, 3),
    "slab": (slab, None, 3),
    "molecule": (lambda: cluster(0), None, 6),
    "dimer": (lambda: Atoms("SiO", positions=[(0, 0, 0), (0.5, 1.0, 1.8)]), None, 5),
    "linear": (lambda: Atoms("OSiO", positions=[(0, 0, -2.2), (0, 0, 0), (0, 0, 2.2)]), None, 5),
    "atom": (lambda: Atoms("Si", positions=[(1.0, 2.0, 3.0)]), None, 3),
    "variable cell": (lambda: crystal(3, 0), FREE, 6),
    "one atom in a variable cell": (lambda: Atoms("Si", cell=2.5 * np.eye(3) + 0.1, pbc=True), FREE, 6),
    "volume only": (lambda: crystal(3, 0), CellOptions(hydrostatic_strain=True), 3),
    "volume kept": (lambda: crystal(3, 0), CellOptions(constant_volume=True), 6),
    "no shear": (lambda: crystal(3, 0), CellOptions(mask=(1, 1, 1, 0, 0, 0)), 3),
    "in the plane": (lambda: crystal(3, 0), CellOptions(mask=(1, 1, 0, 0, 0, 1)), 4),
    "crystal with a fixed atom": (lambda: fixed(crystal(3, 0), FixAtoms([1])), None, 0),
    "crystal with a fixed component": (
        lambda: fixed(crystal(3, 0), FixCartesian(1, mask=(False, True, False))),
        None,
        2,
    ),
    "fixed atom in a variable cell": (lambda: fixed(crystal(3, 0), FixAtoms([1])), FREE, 3),
    "molecule on a fixed atom": (lambda: fixed(cluster(0), FixAtoms([2])), None, 3),
    "molecule on two fixed atoms": (lambda: fixed(cluster(0), FixAtoms([2, 3])), None, 1),
    "molecule on three fixed atoms": (lambda: fixed(cluster(0), FixAtoms([1, 2, 3])), None, 0),
    # Atom 0 can only move along y; at the minimum that is across the bond, where a rotation begins as a free motion.
    "molecule on a line": (
        lambda: fixed(cluster(0), FixCartesian(0, mask=(True, False, True)), FixAtoms([3])),
        None,
        1,
    ),
    "molecule on a plane": (lambda: fixed(cluster(0), FixCartesian([0, 1, 2], mask=(False, False, True))), None, 3),
    # Pinned at one atom it can only turn about the normal through that.
    "molecule pinned on a plane": (
        lambda: fixed(cluster(0), FixCartesian([0, 1], mask=(False, False, True)), FixAtoms([3])),
        None,
        1,
    ),
}


def minimum(atoms, cell):
    """The map and the rows of a minimum that the structure has relaxed to, its cell deformed."""
    relaxation = relaxation_of(atoms, cell)
    state = relaxation.start()
    for _ in range(1500):
        graph, failures = relaxation.graph(state)
        assert failures == {}
        evaluation = relaxation.evaluate(state, graph)
        if float(evaluation.fmax.max()) < 1e-10:
            return relaxation, state, graph
        state = relaxation.move(state, evaluation.forces)
    raise AssertionError("not converged")


def found_modes(relaxation, state, graph):
    modes = zero_modes(relaxation.coordinates, state.coordinates, graph.pbc)
    return modes[modes.abs().sum(dim=(1, 2)) > 0]


@pytest.mark.parametrize("name", CASES)
def test_zero_modes(name):
    build, cell, count = CASES[name]
    relaxation, state, graph = minimum([build()], cell)
    modes = found_modes(relaxation, state, graph)
    assert len(modes) == count
    flat = modes.flatten(start_dim=1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-10)
    free = relaxation.coordinates.free == 0
    assert (modes[:, : len(free)][:, free] == 0).all() or float(modes[:, : len(free)][:, free].abs().max()) < 1e-12
    forces = [_forces(relaxation, state, graph, sign * 1e-4 * mode) for mode in modes for sign in (1, -1)]
    for plus, minus in zip(forces[::2], forces[1::2], strict=True):
        assert float((plus - minus).abs().max()) / 2e-4 < 1e-5


def _forces(relaxation, state, graph, change):
    return relaxation.evaluate(RelaxationState(state.coordinates + change, state.method), graph).forces


@pytest.mark.parametrize(
    "name",
    ["crystal", "molecule", "variable cell", "molecule on two fixed atoms", "molecule on a line", "in the plane"],
)
def test_there_are_no_others(name):
    # All that the Hessian of the free coordinates annihilates is in their span.
    build, cell, count = CASES[name]
    relaxation, state, graph = minimum([build()], cell)

    def forces(rows):
        return relaxation.evaluate(RelaxationState(rows, state.method), graph, create_graph=True).forces

    size, free = state.coordinates.numel(), _free(relaxation)
    hessian = -torch.autograd.functional.jacobian(forces, state.coordinates).reshape(size, size)[free][:, free]
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-9)
    values = torch.linalg.eigvalsh(hessian)
    held = 0 if cell is None else 9 - int(cell.project(torch.ones(1, 3, 3).double()).count_nonzero())
    assert int((values.abs() < 1e-6).sum()) == count + held


def _free(relaxation):
    """Indices of the coordinates that may move."""
    cells = torch.ones((len(relaxation.coordinates.layout.owner) - relaxation.coordinates.num_atoms, 3))
    return torch.cat([relaxation.coordinates.free, cells]).flatten().nonzero().squeeze(1)


def test_batches_have_the_modes_of_each_structure():
    atoms = [build() for build, cell, _ in CASES.values() if cell is None]
    wanted = [count for _, cell, count in CASES.values() if cell is None]
    relaxation = relaxation_of(atoms, None)
    state = relaxation.start()
    graph = relaxation.graph(state)[0]
    modes = zero_modes(relaxation.coordinates, state.coordinates, graph.pbc)
    norms = torch.stack([relaxation.coordinates.layout.norm(mode) for mode in modes], dim=1)
    assert ((norms - norms.round()).abs() < 1e-10).all()
    assert norms.round().sum(dim=1).tolist() == wanted


def test_batches_of_variable_cells_have_the_modes_of_each_structure():
    atoms = [crystal(3, 0), crystal(4, 0), fixed(crystal(3, 1), FixAtoms([1]))]
    relaxation, state, graph = displaced(atoms)
    layout = relaxation.coordinates.layout
    modes = zero_modes(relaxation.coordinates, state.coordinates, graph.pbc)
    for structure, one in enumerate(atoms):
        alone, at, its_graph = displaced([one])
        expected = zero_modes(alone.coordinates, at.coordinates, its_graph.pbc).flatten(start_dim=1)
        found = modes[:, layout.owner == structure].flatten(start_dim=1)
        # They span the same space, whatever their basis.
        torch.testing.assert_close(found.T @ found, expected.T @ expected, rtol=0, atol=1e-10)


def displaced(atoms):
    """Variable cells a few steps from their start, where their deformations differ."""
    relaxation = relaxation_of(atoms, FREE)
    state = relaxation.start()
    for _ in range(5):
        state = relaxation.move(state, relaxation.evaluate(state, relaxation.graph(state)[0]).forces)
    return relaxation, state, relaxation.graph(state)[0]


def test_there_is_always_something_to_project():
    relaxation = relaxation_of([fixed(crystal(3, 0), FixAtoms([0]))], None)
    state = relaxation.start()
    assert (zero_modes(relaxation.coordinates, state.coordinates, relaxation.graph(state)[0].pbc) == 0).all()
