"""Edges in slots, masked and padded: shapes that do not depend on where atoms are, and the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.graphs.edges import GROUP
from ase_finetune.potentials import MorsePotential
from ase_finetune.potentials.convolution import FusedConvolutions
from ase_finetune.potentials.mace import MACEPotential
from tests import helpers
from tests.potentials import test_sevennet
from tests.pretrained import pretrained

STRUCTURES = helpers.structures()
SKIN = 1.0
DTYPES = {"float32": 2e-5, "float64": 1e-11}

MACE = {
    "mace": {},
    "mace, density of edges": {"interaction_cls": "RealAgnosticDensityResidualInteractionBlock"},
    "mace, cutoff left to the blocks": {
        "interaction_cls": "RealAgnosticResidualNonLinearInteractionBlock",
        "interaction_cls_first": "RealAgnosticResidualNonLinearInteractionBlock",
        "apply_cutoff": False,
        "edge_irreps": "4x0e",
    },
    "mace, repulsion of pairs": {"pair_repulsion": True, "distance_transform": "Agnesi"},
}

NAMES = [
    "pair",
    pytest.param("sevennet", marks=pytest.mark.sevenn),
    *(pytest.param(name, marks=pytest.mark.mace) for name in MACE),
]


def build(name, dtype):
    if name == "pair":
        potential = MorsePotential([1, 6, 8, 14], depth=[0.2, 0.5, 0.7, 1.0], cutoff=4.0)
    else:
        potential = helpers.build_sevennet() if name == "sevennet" else MACEPotential(helpers.build_mace(**MACE[name]))
    return potential.to(getattr(torch, dtype))


def assert_same(found, expected, tolerance, count):
    largest = expected.forces.abs().max().clamp(min=1.0)
    torch.testing.assert_close(found.energies[:count], expected.energies, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.forces[:count], expected.forces, rtol=0, atol=tolerance * float(largest))
    stress = found.stress[: len(expected.stress)]
    torch.testing.assert_close(stress, expected.stress, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_masked_and_padded_as_filtered(name, dtype):
    potential, tolerance = build(name, dtype), DTYPES[dtype]
    for atoms in [*STRUCTURES.values(), bulk("Si").repeat(2)]:
        exact = AtomGraph.from_atoms(atoms, potential.cutoff)
        expected = potential.predict(exact)
        skinned = AtomGraph.from_atoms(atoms, potential.cutoff + SKIN).arranged()
        assert_same(potential.predict(skinned), expected, tolerance, len(atoms))
        padded = skinned.padded(3, len(atoms) + 3, skinned.num_edges + 5 * GROUP)
        assert (len(padded.numbers), padded.num_edges) == (len(atoms) + 3, skinned.num_edges + 5 * GROUP)
        assert_same(potential.predict(padded), expected, tolerance, len(atoms))


@pytest.mark.sevenn
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["7net-0", pytest.param("7net-l3i5", marks=pytest.mark.slow)])
def test_structures_that_are_compared_with_sevenn(name, dtype):
    """All of them: a salt, a slab, molecules in a box and without, a skewed cell, single atoms."""
    potential = pretrained(name, getattr(torch, dtype))
    for atoms in test_sevennet.STRUCTURES.values():
        expected = potential.predict(AtomGraph.from_atoms(atoms, potential.cutoff))
        skinned = AtomGraph.from_atoms(atoms, potential.cutoff + SKIN).arranged()
        padded = skinned.padded(2, len(atoms) + 2, skinned.num_edges + 3 * GROUP)
        assert_same(potential.predict(padded), expected, DTYPES[dtype], len(atoms))


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_masked_graphs(name):
    potential = build(name, "float64")
    graphs = [AtomGraph.from_atoms(atoms, potential.cutoff + SKIN) for atoms in STRUCTURES.values()]
    expected = potential.predict(collate(graphs))
    batch = collate([graph.arranged() for graph in graphs])
    assert_same(potential.predict(batch), expected, 1e-11, len(batch.numbers))
    padded = batch.padded(batch.num_graphs + 2, len(batch.numbers), batch.num_edges)
    assert_same(potential.predict(padded), expected, 1e-11, len(batch.numbers))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_parameters_of_masked_graphs(name):
    potential = build(name, "float64")
    parameters = [parameter for _, parameter in potential.native_parameters(trainable_only=True)]

    def gradients(graph):
        prediction = potential.predict(graph, create_graph=True)
        loss = prediction.energies[:8].sum() + prediction.forces.square().sum() + prediction.stress.square().sum()
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    graph = AtomGraph.from_atoms(STRUCTURES["bulk"], potential.cutoff + SKIN)
    for one, other in zip(gradients(graph), gradients(graph.padded(2, 8, 4000)), strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9 * float(one.abs().max() + 1))


def test_slots_hold_every_edge_once():
    graph = AtomGraph.from_atoms(STRUCTURES["skewed"], 5.0)
    slots = graph.arranged()
    assert slots.arranged() is slots
    assert slots.num_edges % GROUP == 0
    groups = slots.edge_index[0].view(-1, GROUP)
    assert (groups == groups[:, :1]).all()
    assert (groups[:, 0].diff() >= 0).all()

    def rows(index, shift):
        return sorted(map(tuple, torch.cat([index.T.double(), shift.double()], dim=1).tolist()))

    filled = slots.filled
    assert rows(slots.edge_index[:, filled], slots.edge_shift[filled]) == rows(graph.edge_index, graph.edge_shift)
    isolated = AtomGraph.from_atoms(STRUCTURES["isolated"], 5.0).arranged()
    assert (isolated.num_edges, isolated.filled.any().item()) == (GROUP, False)


@pytest.mark.parametrize("name", NAMES)
def test_forces_do_not_depend_on_where_a_crystal_is(name):
    """Differences of positions are taken in float64: case A10 of public reports."""
    potential = build(name, "float32")
    near = STRUCTURES["bulk"].copy()
    reference = potential.predict(AtomGraph.from_atoms(near, potential.cutoff)).forces
    for far in (near.copy(), near.copy()):
        far.positions += 40_000.0
    diffused = near.copy()
    diffused.positions[3] += 1000 * diffused.cell[0]
    for moved in (far, diffused):
        forces = potential.predict(AtomGraph.from_atoms(moved, potential.cutoff)).forces
        np.testing.assert_allclose(forces, reference, rtol=0, atol=1e-6 * max(1.0, float(reference.abs().max())))


@pytest.mark.mace
@pytest.mark.parametrize("masked", [False, True])
def test_repulsion_counts_each_pair_once(masked):
    """MACE's own sum over pairs sees slots: atoms that are close together have energies of it."""
    potential = MACEPotential(helpers.build_mace(pair_repulsion=True).double())
    water = molecule("H2O")
    water.positions[1:] = water.positions[0] + 0.9 * (water.positions[1:] - water.positions[0])
    graph = AtomGraph.from_atoms(water, potential.cutoff + SKIN if masked else potential.cutoff)
    ours = potential.predict(graph.arranged() if masked else graph)
    native = MACEPotential(helpers.build_mace(pair_repulsion=True).double())
    native._convolutions = FusedConvolutions({})
    expected = native.predict(AtomGraph.from_atoms(water, potential.cutoff))
    assert_same(ours, expected, 1e-10, 3)
    free = MACEPotential(helpers.build_mace().double()).predict(graph)
    assert float((expected.energies - free.energies).abs().max()) > 1e-3, "a test of the repulsion"
