from __future__ import annotations

import pytest
import torch
from ase.build import bulk

from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials import load_potential
from ase_finetune.potentials.warming import warm_up
from tests import morse


def energies(potential, count):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    graph = AtomGraph.from_atoms(atoms, potential.cutoff)
    found = []
    for _ in range(count):
        with torch.no_grad():
            prediction = potential.predict(graph)
        found.append(torch.cat([prediction.energies, prediction.forces.flatten()]))
    return found


@pytest.mark.sevenn
def test_all_evaluations_are_equal_to_the_last_bit():
    potential, _ = load_potential("7net-0")
    warm_up(potential)
    first, *others = energies(potential, 3)
    assert all(torch.equal(first, other) for other in others)


def test_nothing_is_left_behind():
    potential = morse.pretrained()
    state = torch.get_rng_state()
    warm_up(potential)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in potential.parameters())
    assert morse.same_weights(potential, morse.pretrained())
