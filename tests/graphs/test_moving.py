from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111

from ase_finetune.graphs import MovingGraph
from tests.graphs.edges import brute_force, within

CUTOFF, SKIN = 3.5, 0.8


def structures() -> list[Atoms]:
    """A crystal, a slab, a molecule, a skewed cell of one atom."""
    rng = np.random.default_rng(0)
    silicon = bulk("Si", cubic=True)
    silicon.positions += rng.normal(scale=0.1, size=(8, 3))
    slab = fcc111("Al", (1, 1, 3), vacuum=4.0)
    cluster = Atoms("Si2O", positions=[(0, 0, 0), (2.3, 0, 0), (0.5, 2.0, 0.3)])
    single = Atoms("O", cell=[[2.5, 0, 0], [3.0, 2.5, 0], [-2.0, 2.0, 2.5]], pbc=True)
    return [silicon, slab, cluster, single]


def moving(atoms=None, dtype=torch.float64):
    return MovingGraph(structures() if atoms is None else atoms, CUTOFF, SKIN)


def tensors(atoms):
    positions = torch.tensor(np.concatenate([a.positions for a in atoms]))
    return positions, torch.tensor(np.stack([a.cell[:] for a in atoms]))


def edges_of(graph):
    """Neighbour lists of the structures of a batch, one by one."""
    first = np.concatenate([[0], np.cumsum(graph.num_atoms.numpy())])
    owner = graph.batch[graph.edge_index]
    assert torch.equal(owner[0], owner[1])
    for k in range(graph.num_graphs):
        mine = (owner[0] == k).numpy()
        yield graph.edge_index.numpy()[:, mine] - first[k], graph.edge_shift.numpy()[mine]


def assert_complete(graph, atoms):
    assert graph.num_graphs == len(atoms)
    assert graph.numbers.tolist() == [int(z) for a in atoms for z in a.numbers]
    assert graph.pbc.tolist() == [a.pbc.tolist() for a in atoms]
    for edges, one in zip(edges_of(graph), atoms, strict=True):
        assert within(edges, one, CUTOFF) == brute_force(one, CUTOFF)


def step(atoms, rng, scale=0.04, strain=0.008):
    """Displace all atoms a little and, where there is a cell, deform it together with them."""
    for one in atoms:
        one.positions += rng.normal(scale=scale, size=one.positions.shape)
        if one.cell.rank == 3:
            one.set_cell(one.cell[:] @ (np.eye(3) + rng.normal(scale=strain, size=(3, 3))), scale_atoms=True)


def test_edges_are_complete_after_every_move():
    atoms, rng = structures(), np.random.default_rng(1)
    graphs = moving()
    for _ in range(40):
        positions, cell = tensors(atoms)
        graph, failures = graphs.update(positions, cell)
        assert failures == {}
        assert torch.equal(graph.positions, positions)
        assert torch.equal(graph.cell, cell)
        assert_complete(graph, atoms)
        step(atoms, rng)
    assert 2 * len(atoms) < graphs.rebuilds < 40 * len(atoms) / 2


def test_only_what_moved_far_is_rebuilt():
    atoms = structures()
    graphs = moving()
    first = graphs.update(*tensors(atoms))[0]
    assert graphs.rebuilds == 4
    step(atoms, np.random.default_rng(0), scale=0.02, strain=0.002)
    second = graphs.update(*tensors(atoms))[0]
    assert graphs.rebuilds == 4
    assert second.edge_index is first.edge_index
    assert second.edge_shift is first.edge_shift
    atoms[2].positions[0] += 0.5
    third = graphs.update(*tensors(atoms))[0]
    assert graphs.rebuilds == 5
    assert_complete(third, atoms)


def test_the_structures_given_are_not_changed_and_nothing_carries_a_gradient():
    atoms = structures()
    positions, cell = tensors(atoms)
    graphs = MovingGraph(atoms, CUTOFF, SKIN)
    graph = graphs.update((positions + 0.1).requires_grad_(), cell.requires_grad_())[0]
    assert not graph.positions.requires_grad
    assert not graph.cell.requires_grad
    for one, original in zip(atoms, structures(), strict=True):
        assert one == original


def test_each_failure_is_named_and_the_others_go_on():
    atoms = structures()
    graphs = moving()
    graphs.update(*tensors(atoms))
    broken = [a.copy() for a in atoms]
    broken[0].positions[3, 1] = np.nan
    broken[2].positions[1] = broken[2].positions[0]
    broken[3].cell[:] = 0.0
    graph, failures = graphs.update(*tensors(broken))
    assert graph is None
    assert sorted(failures) == [0, 2, 3]
    assert "position of atom 3 (Si) is not finite" in failures[0]
    assert "coincide" in failures[2]
    assert "spans a volume" in failures[3]
    # Not spoilt for good.
    graph, failures = graphs.update(*tensors(atoms))
    assert failures == {}
    assert_complete(graph, atoms)


def test_selected_and_joined_structures_keep_their_lists():
    atoms, rng = structures(), np.random.default_rng(2)
    graphs = moving()
    graphs.update(*tensors(atoms))
    chosen = graphs.select([1, 3])
    kept = [atoms[1], atoms[3]]
    step(kept, rng, scale=0.02, strain=0.002)
    assert_complete(chosen.update(*tensors(kept))[0], kept)
    assert chosen.rebuilds == 2  # one for each, made before
    more = structures()[:1]
    both = chosen.joined(moving(more))
    assert_complete(both.update(*tensors([*kept, *more]))[0], [*kept, *more])
    assert both.rebuilds == 3
    for _ in range(10):
        step(kept, rng)
        step(more, rng)
        assert_complete(both.update(*tensors([*kept, *more]))[0], [*kept, *more])


def test_structures_are_selected_in_any_order_or_none():
    atoms = structures()
    graphs = moving()
    graphs.update(*tensors(atoms))
    chosen = graphs.select([3, 0])
    turned = [atoms[3], atoms[0]]
    assert_complete(chosen.update(*tensors(turned))[0], turned)
    assert chosen.rebuilds == 2
    none = graphs.select([])
    assert none.rebuilds == 0
    assert_complete(none.joined(chosen).update(*tensors(turned))[0], turned)


def test_a_selection_that_rebuilds_does_not_leave_the_others_with_old_edges():
    # Both use the same lists: what one has rebuilt, the other must not take for unchanged.
    atoms = [Atoms("Si2", positions=[(0, 0, 0), (0, 0, 6.0)]), structures()[0]]
    graphs = moving(atoms)
    graphs.update(*tensors(atoms))
    chosen = graphs.select([0])
    atoms[0].positions[1, 2] = 3.0
    chosen.update(*tensors(atoms[:1]))
    assert_complete(graphs.update(*tensors(atoms))[0], atoms)


@pytest.mark.parametrize("skin", [0.0, 2.0])
def test_edges_with_any_skin(skin):
    atoms, rng = structures(), np.random.default_rng(3)
    graphs = MovingGraph(atoms, CUTOFF, skin)
    for _ in range(5):
        assert_complete(graphs.update(*tensors(atoms))[0], atoms)
        step(atoms, rng)
    assert graphs.rebuilds == (5 if skin == 0 else 1) * len(atoms)


def test_structures_given_as_tensors():
    atoms = structures()
    numbers = torch.tensor(np.concatenate([a.numbers for a in atoms]))
    pbc = torch.tensor(np.stack([a.pbc for a in atoms]))
    graphs = MovingGraph.of_tensors(numbers, pbc, [len(a) for a in atoms], CUTOFF, SKIN)
    assert_complete(graphs.update(*tensors(atoms))[0], atoms)
    assert graphs.rebuilds == 4


def test_which_lists_hold_can_be_read_beforehand():
    atoms, rng = structures(), np.random.default_rng(4)
    one, two = moving(), moving()
    assert one.stale(*tensors(atoms)).all()
    for _ in range(10):
        stale = one.stale(*tensors(atoms)).clone()
        assert_complete(one.update(*tensors(atoms), stale)[0], atoms)
        assert_complete(two.update(*tensors(atoms))[0], atoms)
        assert one.rebuilds == two.rebuilds
        assert not one.stale(*tensors(atoms)).any()
        step(atoms, rng, scale=0.08)
    assert one.rebuilds > 8


@pytest.mark.parametrize("third", [(0.0, 0.0, 0.0), (1.0, 1.0, 0.0)])
def test_a_cell_without_volume_that_changes_gets_a_new_list(third):
    slab = fcc111("Al", (2, 2, 2))
    slab.cell[2] = third @ slab.cell[:]
    graphs = moving([slab])
    graphs.update(*tensors([slab]))
    slab.positions[0, 0] += 0.1
    assert_complete(graphs.update(*tensors([slab]))[0], [slab])
    assert graphs.rebuilds == 1
    slab.set_cell(slab.cell[:] * 1.001, scale_atoms=False)
    assert_complete(graphs.update(*tensors([slab]))[0], [slab])
    assert graphs.rebuilds == 2


@pytest.mark.parametrize("turn", [0.0, 1.0])
def test_a_crystal_that_turns_and_shrinks_a_little_keeps_its_list(turn):
    silicon = bulk("Si", cubic=True)
    graphs = moving([silicon])
    for k in range(5):
        changed = silicon.copy()
        changed.set_cell(silicon.cell[:] * (1 - 0.02 * k), scale_atoms=True)
        changed.rotate(40 * turn * k, (1, 2, 3), rotate_cell=True)
        changed.translate(0.01 * k)
        assert_complete(graphs.update(*tensors([changed]))[0], [changed])
    assert graphs.rebuilds == 1


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("excess", [1e-6, -1e-6])
def test_the_bound_is_sharp(seed, excess):
    # Two atoms just beyond the skin, along what the deformation shortens most, move towards each other.
    moved, rng = 0.12, np.random.default_rng(seed)
    left, stretch, right = np.linalg.svd(np.eye(3) + rng.normal(scale=0.04, size=(3, 3)))
    stretch *= CUTOFF * (1 + excess) / (CUTOFF + SKIN - 2 * moved) / stretch[-1]
    deformation, direction = left @ np.diag(stretch) @ right, left[:, -1]
    apart = (CUTOFF + SKIN + 1e-9) * direction
    atoms = Atoms("Si2", positions=[0 * apart, apart], cell=30 * rng.normal(size=(3, 3)), pbc=False)
    graphs = moving([atoms])
    assert graphs.update(*tensors([atoms]))[0].num_edges == 0
    atoms.positions += moved * np.array([direction, -direction])
    atoms.positions[:] = atoms.positions @ deformation
    atoms.cell[:] = atoms.cell[:] @ deformation
    assert_complete(graphs.update(*tensors([atoms]))[0], [atoms])
    assert graphs.rebuilds == (1 if excess > 0 else 2)
