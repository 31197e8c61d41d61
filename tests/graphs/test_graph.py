from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph, collate, neighbor_list
from ase_finetune.potentials import MorsePotential
from tests import helpers

STRUCTURES = helpers.structures()
POTENTIAL = MorsePotential([1, 6, 8, 14], depth=[0.2, 0.5, 0.7, 1.0], distance=[1.0, 1.5, 1.4, 2.4]).double()


def graph_of(name, **labels):
    graph = AtomGraph.from_atoms(STRUCTURES[name], POTENTIAL.cutoff)
    return graph.with_labels(**labels) if labels else graph


def test_fields_of_one_structure():
    atoms = STRUCTURES["skewed"]
    graph = AtomGraph.from_atoms(atoms, 4.0)
    edge_index, edge_shift = neighbor_list(atoms, 4.0)
    assert graph.num_graphs == 1
    assert graph.num_edges == edge_index.shape[1]
    assert graph.positions.dtype == graph.cell.dtype == torch.float64
    assert graph.numbers.tolist() == atoms.numbers.tolist()
    assert graph.num_atoms.tolist() == [len(atoms)]
    assert graph.pbc.tolist() == [[True, True, True]]
    assert graph.volume.item() == pytest.approx(atoms.get_volume(), rel=1e-6)
    i, j = edge_index
    vectors = atoms.positions[j] - atoms.positions[i] + edge_shift @ atoms.cell[:]
    np.testing.assert_allclose(graph.edge_vectors(), vectors, atol=1e-5)


def test_no_cell_no_volume():
    assert graph_of("molecule").volume.tolist() == [0.0]


def test_graph_does_not_follow_its_atoms():
    atoms = bulk("Si", cubic=True)
    forces = np.ones((8, 3))
    graph = AtomGraph.from_atoms(atoms, 4.0).with_labels(forces=forces)
    before = [value.clone() for value in (graph.positions, graph.cell, graph.pbc, graph.numbers)]
    atoms.set_cell(atoms.cell[:] * 1.1, scale_atoms=True)
    atoms.numbers[:] = 32
    atoms.pbc = False
    for was, value in zip(before, (graph.positions, graph.cell, graph.pbc, graph.numbers), strict=True):
        assert torch.equal(was, value)
    forces[:] = 0
    assert graph.forces.tolist() == [[1.0] * 3] * 8


def test_edges_within_drops_the_skin():
    atoms = STRUCTURES["bulk"]
    exact = AtomGraph.from_atoms(atoms, 4.0)
    skinned = AtomGraph.from_atoms(atoms, 5.5)
    assert skinned.num_edges > exact.num_edges
    edges = skinned.edges_within(4.0, torch.float64)
    edge_index, vectors = edges.index, edges.vectors
    assert edges.inside is None
    assert edge_index.shape[1] == exact.num_edges
    assert vectors.norm(dim=1).max() < 4.0
    key = lambda index, v: sorted((*i, *x) for i, x in zip(index.T.tolist(), v.tolist(), strict=True))  # noqa: E731
    np.testing.assert_allclose(key(edge_index, vectors), key(exact.edge_index, exact.edge_vectors()), atol=1e-12)


def test_edges_within_keeps_the_gradient():
    graph = graph_of("bulk")
    positions = graph.positions.clone().requires_grad_()
    cell = graph.cell.clone().requires_grad_()
    vectors = graph.replace(positions=positions, cell=cell).edges_within(4.0, torch.float32).vectors
    assert vectors.dtype == torch.float32
    assert vectors.shape[0] < graph.num_edges
    gradients = torch.autograd.grad(vectors.square().sum(), (positions, cell))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_batch_holds_each_structure_as_it_is_alone():
    names = ["skewed", "molecule", "one_atom", "isolated", "slab"]
    graphs = [graph_of(name) for name in names]
    batch = collate(graphs)
    assert batch.num_graphs == len(names)
    assert batch.num_atoms.tolist() == [len(STRUCTURES[name]) for name in names]
    assert batch.batch.tolist() == sorted(batch.batch.tolist())
    torch.testing.assert_close(batch.volume, torch.cat([graph.volume for graph in graphs]))
    torch.testing.assert_close(
        batch.edge_vectors(), torch.cat([graph.edge_vectors() for graph in graphs]), rtol=0, atol=1e-12
    )
    together = POTENTIAL.predict(batch)
    alone = [POTENTIAL.predict(graph) for graph in graphs]
    for field in ("energies", "energy", "forces", "stress"):
        expected = torch.cat([getattr(prediction, field) for prediction in alone])
        torch.testing.assert_close(getattr(together, field), expected, rtol=0, atol=1e-12)


def test_batches_can_be_joined():
    first, second, third = (graph_of(name, energy=1.0) for name in ("skewed", "molecule", "bulk"))
    nested, flat = collate([collate([first, second]), third]), collate([first, second, third])
    for field in ("positions", "cell", "batch", "edge_index", "energy", "forces_mask"):
        assert torch.equal(getattr(nested, field), getattr(flat, field))


def test_nothing_to_join():
    with pytest.raises(InputError, match="no structures"):
        collate([])


def test_labelled_and_unlabelled_do_not_mix():
    with pytest.raises(InputError, match="with and without labels"):
        collate([graph_of("bulk", energy=1.0), graph_of("bulk")])


def test_labels_and_masks():
    atoms = STRUCTURES["skewed"]
    forces, stress = np.arange(12.0).reshape(4, 3), np.arange(6.0)
    full = graph_of("skewed", energy=-3.5, forces=forces, stress=stress)
    assert (full.energy.tolist(), full.stress.tolist()) == ([-3.5], [stress.tolist()])
    assert torch.equal(full.forces, torch.as_tensor(forces))
    assert all(mask.all() for mask in (full.energy_mask, full.forces_mask, full.stress_mask))
    assert (full.energy_mask.shape, full.forces_mask.shape, full.stress_mask.shape) == ((1,), (len(atoms),), (1,))
    assert full.energy.dtype == full.forces.dtype == full.stress.dtype == torch.float64

    partial = graph_of("skewed", forces=forces)
    assert (partial.energy.tolist(), partial.energy_mask.tolist()) == ([0.0], [False])
    assert (partial.stress.tolist(), partial.stress_mask.tolist()) == ([[0.0] * 6], [False])
    batch = collate([partial, full])
    assert batch.energy_mask.tolist() == batch.stress_mask.tolist() == [False, True]
    assert batch.forces_mask.tolist() == [True] * 8
    assert batch.energy.tolist() == [0.0, -3.5]

    bare = full.without_labels()
    assert [bare.energy, bare.forces, bare.stress, bare.energy_mask, bare.forces_mask, bare.stress_mask] == [None] * 6
    assert bare.positions is full.positions


def test_without_energy_the_other_labels_stay():
    full = graph_of("skewed", energy=-3.5, forces=np.ones((4, 3)), stress=np.arange(6.0))
    silent = full.without_energy()
    assert silent.energy_mask.tolist() == [False]
    assert full.energy_mask.tolist() == [True]
    for name in ("positions", "energy", "forces", "forces_mask", "stress", "stress_mask"):
        assert getattr(silent, name) is getattr(full, name)
    assert graph_of("skewed").without_energy().energy_mask is None


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("energy", [1.0, 2.0]),
        ("forces", np.zeros((3, 3))),
        ("forces", np.zeros((3, 4))),  # transposed: as many numbers as (4, 3)
        ("forces", np.zeros(12)),
        ("stress", np.zeros((3, 3))),
        ("stress", np.zeros((2, 3))),
    ],
)
def test_label_of_wrong_shape(label, value):
    with pytest.raises(InputError, match=rf"{label} label has shape .*expected"):
        graph_of("skewed", **{label: value})


@pytest.mark.parametrize("energy", [-1.5, np.float32(-1.5), np.array([-1.5]), torch.tensor(-1.5)])
def test_energy_as_scalar_or_one_row(energy):
    assert graph_of("skewed", energy=energy).energy.tolist() == [-1.5]


def test_bytes_of_its_tensors():
    graph = graph_of("skewed")
    atoms, edges = 4, graph.num_edges
    # Numbers, structures and ends of edges have 8 bytes, pbc has 1, all else 4.
    assert graph.num_bytes == 8 * (3 * atoms + 9) + 4 * 3 * edges + 3 + 8 * (2 * atoms + 2 * edges + 1)
    labelled = graph.with_labels(energy=1.0)
    assert labelled.num_bytes == graph.num_bytes + 8 * (1 + 3 * atoms + 6) + (1 + atoms + 1)


def test_bad_structures_are_refused():
    with pytest.raises(InputError, match="no atoms"):
        AtomGraph.from_atoms(Atoms(), 4.0)
    atoms = molecule("H2O")
    atoms.positions[2] = atoms.positions[1]
    with pytest.raises(InputError, match=r"1 \(H\).*2 \(H\)|2 \(H\).*1 \(H\)"):
        AtomGraph.from_atoms(atoms, 4.0)
