from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms

from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.losses import KBAR, Loss
from ase_finetune.metrics import Errors, ErrorSums, evaluate, measure
from ase_finetune.potentials.base import Prediction
from ase_finetune.potentials.batched import predict_many
from tests import morse


def single(predicted, **labels):
    """Prediction (energy, forces, stress) and labels of a dimer in a box."""
    atoms = Atoms("Si2", positions=[(0, 0, 0), (0, 0, 2)], cell=[4, 4, 4], pbc=True)
    graph = AtomGraph.from_atoms(atoms, 3.0).with_labels(**labels)

    def tensor(value):
        return None if value is None else torch.tensor(np.asarray(value, dtype=float))

    energy, forces, stress = predicted
    stress = None if stress is None else [stress]
    return Prediction(tensor([0, 0]), tensor([energy]), tensor(forces), tensor(stress)), graph


def of_single(predicted, **labels):
    prediction, graph = single(predicted, **labels)
    return measure([prediction], [graph])


@pytest.fixture
def world():
    potential = morse.pretrained()
    return potential, morse.graphs(morse.labelled([*morse.silicon(4, 1), *morse.oxide(3, 2)]), potential)


def test_errors_by_hand():
    # residuals: +0.1 and -0.3 eV/atom; 2, and -1 and -4 eV/Å; 0.01 eV/Å³ in one component
    zeros = np.zeros((2, 3))
    first = single((0.2, [[2, 0, 0], [0, 0, 0]], [0.01, *[0] * 5]), energy=0, forces=zeros, stress=[0] * 6)
    second = single((0.4, [[0, 2, 0], [0, 0, 0]], [0] * 6), energy=1, forces=[[0, 3, 0], [0, 0, 4]], stress=[0] * 6)
    errors = measure([first[0], second[0]], [first[1], second[1]], Loss("l1", stress_weight=0))
    assert errors.energy_mae == pytest.approx(1e3 * (0.1 + 0.3) / 2)
    assert errors.energy_rmse == pytest.approx(1e3 * math.sqrt((0.01 + 0.09) / 2))
    assert errors.forces_mae == pytest.approx(1e3 * (2 + 1 + 4) / 12)
    assert errors.forces_rmse == pytest.approx(1e3 * math.sqrt((4 + 1 + 16) / 12))
    assert errors.stress_mae == pytest.approx(0.01 * KBAR / 12)
    assert errors.stress_rmse == pytest.approx(0.01 * KBAR / math.sqrt(12))
    # slope through the origin: sum(predicted * reference) / sum(reference**2)
    assert errors.slope == pytest.approx(2 * 3 / (9 + 16))
    # the loss of each structure alone, averaged
    assert errors.loss == pytest.approx((0.1 + 2 / 6 + 0.3 + 5 / 6) / 2)


def test_slope_is_the_softening_scale():
    forces = np.array([[1.0, -2, 3], [0.5, 0, -1]])
    assert of_single((0, 0.8 * forces, None), forces=forces).slope == pytest.approx(0.8)


def test_nan_where_there_is_nothing_to_compare():
    only_energy = of_single((1.0, np.zeros((2, 3)), np.zeros(6)), energy=0.0)
    assert only_energy.energy_mae == pytest.approx(500)
    for name in ("forces_mae", "forces_rmse", "stress_mae", "stress_rmse", "slope"):
        assert math.isnan(getattr(only_energy, name)), name
    not_predicted = of_single((1.0, None, None), forces=np.ones((2, 3)))
    assert math.isnan(not_predicted.energy_mae)
    assert math.isnan(not_predicted.forces_mae)
    assert set(ErrorSums(Loss()).errors().to_dict().values()) == {None}  # JSON knows no nan


def test_evaluate_equals_measure(world):
    potential, graphs = world
    loss = Loss("l1")
    calls = []
    batched = evaluate(potential, graphs, loss, on_structure=lambda: calls.append(1))
    one_by_one = measure(predict_many(potential, graphs, max_edges=1), graphs, loss)
    assert batched.to_dict() == pytest.approx(one_by_one.to_dict(), rel=1e-5)
    assert batched.forces_mae > 100
    assert len(calls) == len(graphs)


def test_evaluate_leaves_no_gradients(world):
    potential, graphs = world
    before = morse.weights(potential)
    evaluate(potential, graphs)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in potential.parameters())
    assert all(torch.equal(value, before[name]) for name, value in morse.weights(potential).items())


def test_a_potential_agrees_with_itself():
    errors = evaluate(morse.truth(), morse.graphs(morse.labelled(morse.silicon(3, 1)), morse.truth()))
    assert errors.energy_mae < 1e-3
    assert errors.forces_mae < 1e-3
    assert errors.slope == pytest.approx(1, abs=1e-6)


def test_sums_do_not_depend_on_batches(world):
    potential, graphs = world
    whole, parts = ErrorSums(Loss()), ErrorSums(Loss())
    for sums, groups in ((whole, [graphs]), (parts, [graphs[:1], graphs[1:5], graphs[5:]])):
        for group in groups:
            batch = collate(group)
            sums.add(potential.predict(batch), batch)
    assert parts.errors().to_dict() == pytest.approx(whole.errors().to_dict(), rel=1e-6)


def test_no_graphs():
    assert evaluate(morse.pretrained(), []) is None


def test_to_dict():
    errors = Errors(*range(8))
    assert Errors(**errors.to_dict()) == errors
