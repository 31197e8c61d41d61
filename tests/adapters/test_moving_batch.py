"""Neighbour lists of a batch of tensors against lists made anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ase_finetune.adapters.moving_batch import MovingBatch
from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph, collate


def tensors(structures: list[Atoms]) -> dict[str, torch.Tensor]:
    return {
        "positions": torch.tensor(np.concatenate([a.positions for a in structures])),
        "cell": torch.tensor(np.array([a.cell[:] for a in structures])),
        "pbc": torch.tensor(np.array([a.pbc for a in structures])),
        "numbers": torch.tensor(np.concatenate([a.numbers for a in structures])),
        "batch": torch.repeat_interleave(torch.tensor([len(a) for a in structures])),
    }


def lengths(graph: AtomGraph, cutoff: float) -> torch.Tensor:
    return graph.edges_within(cutoff, graph.positions.dtype).vectors.norm(dim=1).sort().values


def assert_complete(graph: AtomGraph, structures: list[Atoms], cutoff: float) -> None:
    anew = collate([AtomGraph.from_atoms(atoms, cutoff) for atoms in structures])
    assert torch.allclose(lengths(graph, cutoff), lengths(anew, cutoff), atol=1e-10)
    assert torch.equal(graph.batch, anew.batch)


@pytest.fixture
def structures() -> list[Atoms]:
    return [bulk("Si", cubic=True), molecule("CH4"), bulk("Cu")]


def test_small_motion_keeps_the_list_and_large_motion_renews_it(structures):
    batch, rng = MovingBatch(4.0, 0.6), np.random.default_rng(0)
    for _ in range(30):
        for atoms in structures:
            atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
        assert_complete(batch.update(**tensors(structures)), structures, 4.0)
    assert 1 < batch.rebuilds < 25


def test_a_cell_that_shrinks_renews_the_list_in_time(structures):
    batch = MovingBatch(4.0, 0.6)
    for _ in range(20):
        for atoms in structures[::2]:
            atoms.set_cell(atoms.cell[:] @ (np.eye(3) * 0.99 + 0.005 * np.eye(3, k=1)), scale_atoms=True)
        assert_complete(batch.update(**tensors(structures)), structures, 4.0)
    assert 1 < batch.rebuilds < 20


def test_another_batch_has_a_list_of_its_own(structures):
    batch = MovingBatch(4.0, 0.6)
    for chosen in (structures, structures[:2], structures[1:], structures[::-1]):
        assert_complete(batch.update(**tensors(chosen)), chosen, 4.0)
    assert batch.rebuilds == 4


def test_no_skin_makes_every_list_anew(structures):
    batch = MovingBatch(4.0, 0.0)
    for _ in range(3):
        assert_complete(batch.update(**tensors(structures)), structures, 4.0)
    assert batch.rebuilds == 3


def test_what_is_broken_is_named(structures):
    batch = MovingBatch(4.0, 0.6)
    batch.update(**tensors(structures))
    structures[1].positions[2] = np.nan
    with pytest.raises(InputError, match=r"structure 1 of the batch: position of atom 2 \(H\) is not finite"):
        batch.update(**tensors(structures))
    with pytest.raises(InputError, match="skin must not be negative"):
        MovingBatch(4.0, -1.0)
