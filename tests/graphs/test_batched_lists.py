"""Neighbour lists of batches: one after the other with vesin, and at once with the library for GPUs on its CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_finetune.errors import InputError
from ase_finetune.graphs import neighbor_list
from ase_finetune.graphs.batched_lists import BatchError, neighbor_lists
from tests.graphs import test_moving, test_neighbors
from tests.graphs.edges import EdgeSet, as_set, brute_force

Finder = Callable[..., tuple[torch.Tensor, torch.Tensor]]

HAS_LIBRARY = importlib.util.find_spec("nvalchemiops") is not None
needs_library = pytest.mark.skipif(not HAS_LIBRARY, reason="needs nvalchemi-toolkit-ops (the extra gpu)")


def at_once(*args) -> tuple[torch.Tensor, torch.Tensor]:
    from ase_finetune.graphs.device_lists import neighbor_lists_at_once

    return neighbor_lists_at_once(*args)


FINDERS = [pytest.param(neighbor_lists, id="default"), pytest.param(at_once, id="library", marks=needs_library)]


def tensors(structures: list[Atoms]) -> tuple:
    return (
        torch.tensor(np.concatenate([a.positions for a in structures])),
        torch.tensor(np.stack([a.cell[:] for a in structures])),
        torch.tensor(np.stack([a.pbc for a in structures])),
        torch.tensor(np.concatenate([a.numbers for a in structures])),
        [len(a) for a in structures],
    )


def sets(structures: list[Atoms], edges: tuple[torch.Tensor, torch.Tensor]) -> list[EdgeSet]:
    """The edges of each structure; they come structure by structure."""
    edge_index, edge_shift = edges
    assert (edge_index.dtype, edge_shift.dtype) == (torch.int64, torch.float64)
    assert edge_index.shape == (2, len(edge_shift))
    bounds = torch.tensor(np.cumsum([len(a) for a in structures]))
    owner = torch.bucketize(edge_index[0], bounds, right=True)
    assert (owner.diff() >= 0).all()
    found = []
    for k, atoms in enumerate(structures):
        mine = owner == k
        index = edge_index[:, mine] - (bounds[k] - len(atoms))
        found.append(as_set((index.numpy(), edge_shift[mine].numpy())))
    return found


def spheres(count: int, seed: int, pbc=True) -> Atoms:
    """Randomly placed atoms as dense as in a solid."""
    length = (count / 0.05) ** (1 / 3)
    return Atoms(f"Si{count}", np.random.default_rng(seed).uniform(0, length, (count, 3)), cell=[length] * 3, pbc=pbc)


@pytest.mark.parametrize("find", FINDERS)
@pytest.mark.parametrize("cutoff", [1.0, 4.0, 5.5])
def test_the_edges_of_each_structure(find, cutoff):
    # Silicon's primitive cell is narrower than the cutoff: images beyond the next cell count.
    structures = [*test_neighbors.cases().values(), bulk("Si"), molecule("CH4"), bulk("Fe")]
    expected = [as_set(neighbor_list(atoms, cutoff)) for atoms in structures]
    assert sets(structures, find(*tensors(structures), cutoff)) == expected
    assert [sets([a], find(*tensors([a]), cutoff))[0] for a in structures] == expected


@pytest.mark.parametrize("find", FINDERS)
@pytest.mark.parametrize("pbc", [True, False, (True, False, True)])
def test_the_edges_of_large_structures(find, pbc):
    structures = [spheres(count, seed, pbc) for seed, count in enumerate((700, 3, 1200))]
    expected = [as_set(neighbor_list(atoms, 4.5)) for atoms in structures]
    assert sets(structures, find(*tensors(structures), 4.5)) == expected


@st.composite
def random_structures(draw: st.DrawFn) -> list[Atoms]:
    """A few small structures in small, skewed or flat cells, or without; atoms may be outside."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    structures = []
    for _ in range(draw(st.integers(1, 4))):
        count, size = draw(st.integers(1, 5)), draw(st.sampled_from([2.0, 4.0, 9.0]))
        pbc = draw(st.lists(st.booleans(), min_size=3, max_size=3))
        cell = size * (np.eye(3) + draw(st.sampled_from([0.0, 0.3, 0.9])) * rng.uniform(-1, 1, size=(3, 3)))
        if abs(np.linalg.det(cell)) < 2.0:
            cell = size * np.eye(3)
        if draw(st.booleans()):
            cell[[not periodic for periodic in pbc]] = 0.0
        structures.append(Atoms(f"Si{count}", rng.uniform(-2, 3, size=(count, 3)) * size, cell=cell, pbc=pbc))
    return structures


@pytest.mark.parametrize("find", FINDERS)
@given(structures=random_structures(), cutoff=st.sampled_from([1.5, 3.0, 5.5]))
@settings(max_examples=100, deadline=None)
def test_the_edges_of_random_structures(find, structures, cutoff):
    expected = [as_set(neighbor_list(atoms, cutoff)) for atoms in structures]
    assert sets(structures, find(*tensors(structures), cutoff)) == expected
    assert expected[0] == brute_force(structures[0], cutoff)


@pytest.mark.parametrize("find", FINDERS)
def test_atoms_closer_than_the_library_supposes(find):
    dense = Atoms("Si60", np.random.default_rng(0).uniform(0, 2.0, size=(60, 3)))
    structures = [bulk("Si"), dense]
    assert len(sets(structures, find(*tensors(structures), 3.0))[1]) > 60 * 30


def broken() -> dict[int, Atoms]:
    near = Atoms("SiO", [(0, 0, 0), (0, 0, 1e-6)])
    image = Atoms("SiO", [(0, 0, 0), (0, 0, 5.0)], cell=[4, 4, 5.0], pbc=True)
    lost = bulk("Si", cubic=True)
    lost.positions[3, 1] = np.nan
    infinite = bulk("Si")
    infinite.cell[0, 0] = np.inf
    free = molecule("CH4")
    free.cell[0, 0] = np.nan
    flat = bulk("Si")
    flat.cell[2] = flat.cell[0] + flat.cell[1]
    none = Atoms("Si", pbc=(False, False, True))
    short = Atoms("Si", cell=[4, 4, 1e-9], pbc=True)
    return dict(enumerate([near, image, lost, infinite, free, flat, none, short, Atoms()]))


@pytest.mark.parametrize("find", FINDERS)
@pytest.mark.parametrize("index", broken())
def test_a_structure_that_cannot_be_evaluated_is_named(find, index):
    atoms = broken()[index]
    with pytest.raises(InputError) as expected:
        neighbor_list(atoms, 4.0)
    for structures, place in (([atoms], 0), ([bulk("Cu"), atoms, molecule("CH4")], 1)):
        with pytest.raises(BatchError) as error:
            find(*tensors(structures), 4.0)
        assert error.value.failures == {place: str(expected.value)}
        assert str(error.value) == f"structure {place} of the batch: {expected.value}"


@pytest.mark.parametrize("find", FINDERS)
def test_a_narrow_but_valid_cell(find):
    # Its volume between unit vectors is 5e-4, which is looked at closely.
    structures = [Atoms("Si", cell=[[4000.0, 0, 0], [4000.0, 2.0, 0], [0, 0, 4.0]], pbc=True), bulk("Si")]
    expected = [as_set(neighbor_list(atoms, 4.5)) for atoms in structures]
    assert sets(structures, find(*tensors(structures), 4.5)) == expected


@needs_library
def test_a_moving_graph_by_the_library(monkeypatch):
    monkeypatch.setattr("ase_finetune.graphs.moving.neighbor_lists", at_once)
    test_moving.test_edges_are_complete_after_every_move()
    test_moving.test_each_failure_is_named_and_the_others_go_on()
    test_moving.test_selected_and_joined_structures_keep_their_lists()
