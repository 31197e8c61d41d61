from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.losses import KBAR, Loss, label_counts, residuals
from ase_finetune.potentials.base import Prediction
from tests import morse

KINDS = ("huber", "mse", "l1")


def graph(atoms, **labels):
    return AtomGraph.from_atoms(atoms, 3.0).with_labels(**labels)


@pytest.fixture
def dimer():
    """Residuals by hand: 0.2 eV/atom, one force component of 0.3 eV/Å, one stress of 0.01 eV/Å³."""
    atoms = Atoms("Si2", positions=[(0, 0, 0), (0, 0, 2)], cell=[4, 4, 4], pbc=True)
    prediction = Prediction(
        energies=torch.tensor([0.2, 0.2], dtype=torch.float64),
        energy=torch.tensor([0.4], dtype=torch.float64),
        forces=torch.tensor([[0.3, 0, 0], [0, 0, 0]], dtype=torch.float64),
        stress=torch.tensor([[0, 0, 0.01, 0, 0, 0]], dtype=torch.float64),
    )
    return prediction, graph(atoms, energy=0.0, forces=np.zeros((2, 3)), stress=np.zeros(6))


@pytest.fixture
def world():
    """A float64 Morse potential and five graphs of two sizes, some of whose labels are missing."""
    potential = morse.pretrained().double()
    labels = [("energy", "forces", "stress"), ("energy",), ("forces",), ("forces", "stress"), ("energy", "forces")]
    structures = [*morse.silicon(3, 1), *morse.oxide(1, 2), Atoms("SiO", positions=[(0, 0, 0), (0, 0, 1.7)])]
    made = []
    for atoms, names in zip(structures, labels, strict=True):
        made += morse.graphs(morse.labelled([atoms]), potential, labels=names)
    return potential, made


def gradient(scalar, potential):
    parameters = [parameter for _, parameter in potential.native_parameters()]
    found = torch.autograd.grad(scalar, parameters, allow_unused=True)
    return torch.cat([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)])


def test_kbar():
    assert pytest.approx(1602.1766, rel=1e-7) == KBAR


@pytest.mark.parametrize(
    ("kind", "energy", "forces", "stress"),
    [
        # stress: 0.01 eV/Å³ is 16.021766 kbar, a mean over 6 components; forces over 6 components
        ("mse", 0.2**2, 0.3**2 / 6, 16.021766**2 / 6),
        ("l1", 0.2, 0.3 / 6, 16.021766 / 6),
        ("huber", 0.01 * (0.2 - 0.005), 0.01 * (0.3 - 0.005) / 6, 0.01 * (16.021766 - 0.005) / 6),
    ],
)
def test_every_kind_by_hand(dimer, kind, energy, forces, stress):
    loss = Loss(kind, energy_weight=2.0, forces_weight=3.0, stress_weight=0.5)
    assert float(loss(*dimer)) == pytest.approx(2 * energy + 3 * forces + 0.5 * stress, rel=1e-7)
    for weights, expected in (((1, 0, 0), energy), ((0, 1, 0), forces), ((0, 0, 1), stress)):
        names = ("energy_weight", "forces_weight", "stress_weight")
        single = Loss(kind, **dict(zip(names, map(float, weights), strict=True)))
        assert float(single(*dimer)) == pytest.approx(expected, rel=1e-7)


def test_huber_is_quadratic_below_delta(dimer):
    loss = Loss(huber_delta=0.5, forces_weight=0, stress_weight=0)
    assert float(loss(*dimer)) == pytest.approx(0.5 * 0.2**2, rel=1e-12)


def test_defaults_are_those_of_the_paper():
    assert Loss() == Loss("huber", 0.01, 1.0, 1.0, 0.01)
    assert Loss().describe()["units"] == "eV/atom, eV/Å, kbar"


def test_energy_is_per_atom_and_means_are_over_labelled_components():
    # Two structures of 1 and 3 atoms; the forces of the first are not labelled.
    one = graph(Atoms("Si", positions=[(0, 0, 0)]), energy=1.0)
    two = graph(Atoms("Si3", positions=[(0, 0, 0), (0, 0, 2), (0, 2, 0)]), energy=3.0, forces=np.zeros((3, 3)))
    prediction = Prediction(
        energies=torch.zeros(4, dtype=torch.float64),
        energy=torch.tensor([1.5, 6.0], dtype=torch.float64),
        forces=torch.full((4, 3), 0.7, dtype=torch.float64),
        stress=torch.full((2, 6), 9.0, dtype=torch.float64),
    )
    loss = Loss("l1", stress_weight=5.0)
    batch = collate([one, two])
    # energies: |0.5|/1 and |3|/3, mean 0.75; forces: 0.7 over the 9 labelled ones; no stress label at all
    assert float(loss(prediction, batch)) == pytest.approx(0.75 + 0.7, rel=1e-12)
    assert loss.per_structure(prediction, batch).tolist() == pytest.approx([0.5, 1.0 + 0.7], rel=1e-12)
    assert label_counts([batch]) == label_counts([one, two]) == (2, 3, 0)


def test_missing_labels_do_not_enter(world):
    potential, graphs = world
    for item in graphs:
        masked = item.replace(
            energy=torch.where(item.energy_mask, item.energy, 1e6),
            forces=torch.where(item.forces_mask[:, None], item.forces, 1e6),
            stress=torch.where(item.stress_mask[:, None], item.stress, 1e6),
        )
        prediction = potential.predict(item)
        assert float(Loss()(prediction, masked)) == float(Loss()(prediction, item)) < 100


@pytest.mark.parametrize("kind", KINDS)
def test_per_structure_is_the_loss_of_each_alone(world, kind):
    potential, graphs = world
    loss = Loss(kind)
    batch = collate(graphs)
    together = loss.per_structure(potential.predict(batch), batch)
    alone = torch.stack([loss(potential.predict(item), item) for item in graphs])
    assert (alone > 0).all()
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [[[0, 1], [2, 3, 4]], [[4], [3], [2], [1], [0]]])
def test_pieces_add_up_to_the_batch(world, kind, pieces):
    potential, graphs = world
    loss = Loss(kind, stress_weight=0.1)
    batch = collate(graphs)
    whole = loss(potential.predict(batch, create_graph=True), batch)
    counts = label_counts(graphs)
    assert counts == (3, 26, 2)
    parts = []
    for indices in pieces:
        part = collate([graphs[index] for index in indices])
        parts.append(loss(potential.predict(part, create_graph=True), part, counts))
    assert float(sum(parts).detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    expected = gradient(whole, potential)
    assert float(expected.abs().min()) > 0
    torch.testing.assert_close(sum(gradient(p, potential) for p in parts), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["energy_weight", "forces_weight", "stress_weight"])
def test_every_weight_scales_its_own_gradient(world, name):
    potential, graphs = world
    batch = collate(graphs)

    def of(loss):
        return gradient(loss(potential.predict(batch, create_graph=True), batch), potential)

    single = Loss(
        "mse", **{other: float(other == name) for other in ("energy_weight", "forces_weight", "stress_weight")}
    )
    assert float(of(single).abs().max()) > 1e-4
    base = Loss("mse", energy_weight=1, forces_weight=1, stress_weight=1)
    change = of(replace(base, **{name: 3.0})) - of(base)
    torch.testing.assert_close(change, 2 * of(single), rtol=1e-9, atol=1e-10)


def test_a_weight_of_zero_needs_no_prediction():
    assert not Loss(forces_weight=0).needs_forces
    assert not Loss(stress_weight=0).needs_stress
    assert Loss().needs_forces
    assert Loss().needs_stress


def test_residuals_without_labels_raise(world):
    potential, graphs = world
    with pytest.raises(InputError, match="no labels"):
        residuals(potential.predict(graphs[0]), graphs[0].without_labels())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hubert"}, "loss.kind='hubert' is not known; use one of huber, mse, l1"),
        ({"huber_delta": 0.0}, "huber_delta must be positive, got 0"),
        ({"huber_delta": float("nan")}, "loss.huber_delta must be a number, got nan"),
        ({"energy_weight": -1.0}, "energy_weight must not be negative, got -1"),
        ({"forces_weight": float("nan")}, "loss.forces_weight must be a number, got nan"),
        ({"stress_weight": -0.1}, "stress_weight must not be negative"),
        ({"energy_weight": 0, "forces_weight": 0, "stress_weight": 0}, "all loss weights are 0"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(InputError, match=message):
        Loss(**options)
