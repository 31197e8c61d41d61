from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ase_finetune.data import read_pairs
from ase_finetune.errors import InputError
from ase_finetune.trajectories.losses import (
    StructureLoss,
    Structures,
    cell_strain,
    delta_q,
    energy_error,
    log_volume_ratio,
    rmsd,
)

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
EVERYTHING = StructureLoss(delta_q=0.1, rmsd=1.0, strain=2.0, volume=0.5, energy=3.0)
NAN = math.nan


def batch(*structures: Atoms, dtype: torch.dtype = torch.float64) -> Structures:
    return Structures.from_atoms(structures, dtype=dtype)


def crystal(seed: int, spread: float = 0.1) -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms = atoms.repeat((2, 1, 1))
    rng = np.random.default_rng(seed)
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + 0.3 * spread * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.positions += spread * rng.normal(size=(4, 3))
    return atoms


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_values_by_hand():
    target = Atoms("LiCl", positions=[(0, 0, 0), (2, 2, 2)], cell=[4, 4, 4], pbc=True)
    end = target.copy()
    end.positions += [(0.3, 0, 0), (-0.1, 0.4, 0)]
    lithium, chlorine = target.get_masses()
    pair = batch(end), batch(target)
    apart = math.sqrt(0.4**2 + 0.4**2)
    assert rmsd(*pair, remove_drift=False).item() == pytest.approx(math.sqrt((0.09 + 0.17) / 2))
    assert rmsd(*pair).item() == pytest.approx(apart / 2)
    assert delta_q(*pair, remove_drift=False).item() == pytest.approx(math.sqrt(lithium * 0.09 + chlorine * 0.17))
    reduced_mass = lithium * chlorine / (lithium + chlorine)
    assert delta_q(*pair).item() == pytest.approx(math.sqrt(reduced_mass) * apart)
    assert cell_strain(*pair).item() == log_volume_ratio(*pair).item() == 0


def test_cells_by_hand():
    target = Atoms("LiCl", scaled_positions=[(0, 0, 0), (0.5, 0.5, 0.5)], cell=[4, 5, 6], pbc=True)
    end = target.copy()
    end.set_cell([4.4, 5, 5.4], scale_atoms=True)
    pair = batch(end), batch(target)
    # E = (stretch² - 1) / 2 along each axis.
    assert cell_strain(*pair).item() == pytest.approx(math.hypot((1.1**2 - 1) / 2, (0.9**2 - 1) / 2))
    assert log_volume_ratio(*pair).item() == pytest.approx(math.log(1.1 * 0.9))
    assert rmsd(*pair).item() == pytest.approx(0, abs=1e-12)


def test_strain_is_green_lagrange():
    end, target = crystal(0), crystal(1)
    gradient = np.linalg.solve(target.cell[:], end.cell[:]).T
    expected = np.linalg.norm((gradient.T @ gradient - np.eye(3)) / 2)
    assert cell_strain(batch(end), batch(target)).item() == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_strain_does_not_see_rotations(seed):
    end, target = crystal(seed), crystal(seed + 1)
    expected = EVERYTHING.terms(batch(end), batch(target))
    for atoms in (end, target):
        turn = Rotation.random(random_state=np.random.RandomState(seed)).as_matrix()
        atoms.set_cell(atoms.cell[:] @ turn)
        atoms.positions[:] = atoms.positions @ turn
        turned = EVERYTHING.terms(batch(end), batch(target))
        for name, value in expected.items():
            assert turned[name].item() == pytest.approx(value.item(), rel=1e-9), name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(-2, 2))
def test_translations_do_not_matter(seed, part):
    end, target = crystal(seed), crystal(seed + 1)
    expected = EVERYTHING(batch(end), batch(target), tensor(1.0), tensor(2.0)).item()
    end.positions += np.random.default_rng(seed).integers(-2, 3, (4, 3)) @ end.cell[:] + part * end.cell[1]
    assert EVERYTHING(batch(end), batch(target), tensor(1.0), tensor(2.0)).item() == pytest.approx(expected, rel=1e-9)


def test_slabs_wires_and_molecules():
    target = fcc111("Cu", (2, 2, 2), vacuum=5)
    end = target.copy()
    end.set_cell(end.cell[:] @ np.diag([1.1, 1.1, 1.0]), scale_atoms=True)
    end.cell[2, 2] *= 2
    assert log_volume_ratio(batch(end), batch(target)).item() == pytest.approx(2 * math.log(1.1))
    assert cell_strain(batch(end), batch(target)).item() == pytest.approx(math.sqrt(2) * 0.105)
    for atoms in (target, end):
        atoms.pbc = (True, False, False)
    assert log_volume_ratio(batch(end), batch(target)).item() == pytest.approx(math.log(1.1))
    assert cell_strain(batch(end), batch(target)).item() == pytest.approx(0.105)
    water, bigger = molecule("H2O", vacuum=3), molecule("H2O", vacuum=4)
    assert cell_strain(batch(bigger), batch(water)).item() == log_volume_ratio(batch(bigger), batch(water)).item() == 0
    assert rmsd(batch(bigger), batch(water)).item() == pytest.approx(0, abs=1e-12)


def test_a_defect_in_a_fixed_cell():
    target = bulk("Si", cubic=True).repeat((2, 2, 2))
    del target[0]
    end = target.copy()
    neighbors = np.argsort(target.get_distances(0, range(len(target)), mic=True))[1:5]
    end.positions[neighbors] += 0.1
    loss = StructureLoss(delta_q=1.0, rmsd=0.0, strain=1.0, remove_drift=False)
    expected = math.sqrt(target.get_masses()[0] * 4 * 3 * 0.1**2)
    assert loss(batch(end), batch(target)).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["delta_q", "rmsd", "strain", "volume", "energy"])
@pytest.mark.parametrize("kind", ["crystal", "slab", "wire"])
def test_gradients(name, kind):
    end, target = crystal(0), crystal(1)
    end.pbc = target.pbc = {"crystal": True, "slab": (True, True, False), "wire": (False, True, False)}[kind]
    structures, wanted = batch(end, crystal(2)), batch(target, crystal(3))
    loss = StructureLoss(**{"rmsd": 0.0, "strain": 0.0, name: 1.0})

    def function(positions, cell, energy):
        return loss(replace(structures, positions=positions, cell=cell), wanted, energy, tensor(-3.0, -2.0))

    inputs = structures.positions, structures.cell, tensor(-2.0, -4.0)
    assert torch.autograd.gradcheck(function, [value.clone().requires_grad_() for value in inputs])


@pytest.mark.parametrize("name", ["delta_q", "rmsd"])
def test_gradients_of_aligned_molecules_are_exact(name):
    target, end = molecule("CH3CH2OH"), molecule("CH3CH2OH")
    end.rattle(0.2, seed=0)
    end.rotate(70, (1, 2, 3))
    structures, wanted = batch(end), batch(target)
    loss = StructureLoss(**{"rmsd": 0.0, "strain": 0.0, "align": True, name: 1.0})

    def function(positions):
        return loss(replace(structures, positions=positions), wanted)

    assert torch.autograd.gradcheck(function, [structures.positions.clone().requires_grad_()])
    gradient = torch.autograd.functional.jacobian(function, structures.positions)[0]
    # No force, no torque: neither a shift nor a turn changes the aligned distance.
    np.testing.assert_allclose(gradient.sum(dim=0), 0, atol=1e-12)
    np.testing.assert_allclose(torch.linalg.cross(structures.positions, gradient).sum(dim=0), 0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("copy", ["same", "translated", "image", "turned", "molecule"])
def test_coinciding_structures_have_no_gradient(dtype, copy):
    target = molecule("CH3CH2OH") if copy == "molecule" else crystal(0)
    end = target.copy()
    if copy == "translated":
        end.positions += (0.3, 0.2, 0.1)
    elif copy == "image":
        end.positions[2] += end.cell[0] - end.cell[1]
    elif copy == "turned":
        turn = Rotation.from_rotvec([0.3, -0.2, 0.8]).as_matrix()
        end.set_cell(end.cell[:] @ turn)
        end.positions = end.positions @ turn
    elif copy == "molecule":
        end.rotate(40, (1, 2, 3))
    loss = replace(EVERYTHING, volume=0.0 if copy == "turned" else 0.5, align=copy == "molecule")
    structures = batch(end, dtype=dtype)
    structures.positions.requires_grad_()
    structures.cell.requires_grad_()
    energy = torch.tensor([-1.0], dtype=dtype, requires_grad=True)
    value = loss(structures, batch(target, dtype=dtype), energy, energy.detach().clone())
    value.sum().backward()
    assert value.item() == 0
    for leaf in (structures.positions, structures.cell, energy):
        assert leaf.grad is None or (leaf.grad == 0).all()


def test_small_distances_count():
    target, end = crystal(0), crystal(0)
    end.positions[0, 0] += 1e-8
    structures = batch(end)
    structures.positions.requires_grad_()
    value = rmsd(structures, batch(target), remove_drift=False)
    value.sum().backward()
    assert value.item() == pytest.approx(1e-8 / 2, rel=1e-6)
    assert structures.positions.grad[0, 0].item() == pytest.approx(0.5, rel=1e-6)


def test_energies():
    structures = batch(crystal(0), molecule("H2O"), crystal(1))
    energy = tensor(-10.0, 1.0, 2.0).requires_grad_()
    error = energy_error(structures, energy, tensor(-12.0, 4.0, NAN))
    assert error.tolist() == pytest.approx([0.5, 1.0, 0.0])
    error.sum().backward()
    assert energy.grad.tolist() == pytest.approx([0.25, -1 / 3, 0.0])
    with pytest.raises(InputError, match=r"target_energy has shape \(2,\), expected \(3,\)"):
        energy_error(structures, energy, tensor(1.0, 2.0))
    with pytest.raises(InputError, match=r"energy has shape \(1, 3\)"):
        energy_error(structures, energy[None], tensor(1.0, 2.0, 3.0))


def test_a_broken_energy_is_not_hidden():
    assert energy_error(batch(crystal(0)), tensor(NAN), tensor(1.0)).isnan().all()


def test_the_loss_is_the_weighted_sum_of_its_terms():
    structures, target = batch(crystal(0), crystal(1)), batch(crystal(2), crystal(3))
    energies = tensor(-10.0, -9.0), tensor(-12.0, NAN)
    terms = EVERYTHING.terms(structures, target, *energies)
    assert list(terms) == ["delta_q", "rmsd", "strain", "volume", "energy"]
    expected = sum(weight * terms[name] for name, weight in EVERYTHING.weights.items())
    np.testing.assert_allclose(EVERYTHING(structures, target, *energies), expected, rtol=1e-12)
    assert (terms["volume"] >= 0).all()
    assert StructureLoss().terms(structures, target).keys() == {"delta_q", "rmsd", "strain", "volume"}
    default = StructureLoss()(structures, target)
    np.testing.assert_allclose(default, terms["rmsd"] + terms["strain"], rtol=1e-12)


def test_a_batch_is_its_structures():
    ends = [crystal(0), fcc111("Cu", (2, 1, 2), vacuum=4), molecule("H2O"), crystal(1)]
    targets = [crystal(5), *(atoms.copy() for atoms in ends[1:3]), crystal(6)]
    for atoms in targets[1:3]:
        atoms.rattle(0.2, seed=1)
    energies, wanted = tensor(1.0, 2.0, 3.0, 4.0), tensor(2.0, NAN, 3.5, 3.0)
    together = EVERYTHING(batch(*ends), batch(*targets), energies, wanted)
    alone = [
        EVERYTHING(batch(end), batch(target), energies[i : i + 1], wanted[i : i + 1])
        for i, (end, target) in enumerate(zip(ends, targets, strict=True))
    ]
    np.testing.assert_allclose(together, torch.cat(alone), rtol=1e-12)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"rmsd": -1.0}, "the weight of rmsd must be finite and not negative, got -1.0"),
        ({"strain": NAN}, "loss.strain must be a number, got nan"),
        ({"energy": math.inf}, "the weight of energy must be finite"),
        ({"volume": float("inf")}, "the weight of volume must be finite"),  # as a file of options gives it
        ({"rmsd": 0.0, "strain": 0.0}, "all weights of the structure loss are 0"),
        ({"align": True, "remove_drift": False}, "needs remove_drift=True"),
    ],
)
def test_weights_that_make_no_sense(weights, message):
    with pytest.raises(InputError, match=message):
        StructureLoss(**weights)


def test_missing_energies_and_foreign_targets():
    structures, target = batch(crystal(0)), batch(crystal(1))
    with pytest.raises(InputError, match=r"energy weight of 3\.0 and needs energy"):
        EVERYTHING(structures, target)
    with pytest.raises(InputError, match=r"needs target_energy"):
        EVERYTHING(structures, target, tensor(1.0))
    for loss in (StructureLoss(), StructureLoss(rmsd=0.0), StructureLoss(rmsd=0.0, strain=0.0, volume=1.0)):
        with pytest.raises(InputError, match="structure 0 has 4 atoms, its target 3"):
            loss(structures, batch(molecule("H2O")))


def test_bundled_pairs():
    pairs = read_pairs([EXAMPLES / f"crystal_pairs_{end}.extxyz" for end in ("initial", "relaxed")])
    structures, target = ([getattr(pair, end) for pair in pairs] for end in ("initial", "relaxed"))
    terms = StructureLoss().terms(batch(*structures), batch(*target))
    volumes = [math.log(a.get_volume() / b.get_volume()) for a, b in zip(structures, target, strict=True)]
    np.testing.assert_allclose(terms["volume"], np.abs(volumes), rtol=1e-9)
    assert 0.02 < terms["rmsd"].min() < terms["rmsd"].max() < 1
    assert terms["strain"].max() < 1
