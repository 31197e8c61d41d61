from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.geometry import find_mic
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ase_finetune.errors import InputError
from ase_finetune.trajectories.structures import Structures, complete_cells, displacements

SKEWED = np.array([[4.0, 0.2, 0.0], [3.1, 3.5, 0.0], [7.5, 2.0, 5.0]])


def batch(*structures: Atoms, dtype: torch.dtype = torch.float64) -> Structures:
    return Structures.from_atoms(structures, dtype=dtype)


def crystal(seed: int = 0, spread: float = 0.1, cell: np.ndarray = SKEWED) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = Atoms("Li3PS4", scaled_positions=np.random.default_rng(5).uniform(size=(8, 3)), cell=cell, pbc=True)
    atoms.positions += spread * rng.uniform(-1, 1, (8, 3))
    return atoms


def moved(one: Atoms, other: Atoms, **options) -> np.ndarray:
    return displacements(batch(one), batch(other), **options).numpy()


def test_a_batch_of_atoms():
    structures = batch(crystal(), molecule("H2O"), fcc111("Cu", (1, 1, 2), vacuum=4))
    assert structures.num_structures == 3
    assert structures.num_atoms.tolist() == [8, 3, 2]
    assert structures.batch.tolist() == [0] * 8 + [1] * 3 + [2] * 2
    assert structures.pbc.tolist() == [[True] * 3, [False] * 3, [True, True, False]]
    assert structures.masses[8:11].tolist() == pytest.approx([15.999, 1.008, 1.008])
    assert structures.volume[0].item() == pytest.approx(crystal().get_volume())
    assert structures.volume[1] == 0
    assert structures.sum(torch.ones(13, 2)).tolist() == [[8, 8], [3, 3], [2, 2]]
    assert batch(crystal(), dtype=torch.float32).cell.dtype == torch.float32


def test_a_batch_does_not_change_with_its_atoms():
    atoms = crystal()
    structures = batch(atoms)
    before = structures.positions.clone(), structures.cell.clone()
    atoms.positions += 1
    atoms.cell[:] *= 2
    assert torch.equal(structures.positions, before[0])
    assert torch.equal(structures.cell, before[1])


def test_structures_that_cannot_be_evaluated():
    broken = crystal()
    broken.positions[2] = np.nan
    with pytest.raises(InputError, match=r"structure 1: position of atom 2 \(Li\) is not finite"):
        batch(crystal(), broken)
    with pytest.raises(InputError, match="no structures"):
        batch()


def test_displacements_by_hand():
    start = Atoms("LiCl", positions=[(0, 0, 0), (2, 2, 2)], cell=[4, 4, 4], pbc=True)
    end = start.copy()
    end.positions += [(0.3, 0, 0), (-0.1, 0.4, 0)]
    plain = np.array([(0.3, 0, 0), (-0.1, 0.4, 0)])
    np.testing.assert_allclose(moved(end, start, remove_drift=False), plain, atol=1e-12)
    np.testing.assert_allclose(moved(end, start), plain - plain.mean(axis=0), atol=1e-12)
    masses = start.get_masses()
    weighted = displacements(batch(end), batch(start), weights=torch.tensor(masses)).numpy()
    np.testing.assert_allclose(weighted, plain - masses @ plain / masses.sum(), atol=1e-12)


def test_strain_displaces_nothing_and_the_targets_cell_measures():
    start, end = crystal(), crystal()
    strain = np.eye(3) + 0.1 * np.random.default_rng(0).normal(size=(3, 3))
    end.set_cell(start.cell[:] @ strain, scale_atoms=True)
    np.testing.assert_allclose(moved(end, start, remove_drift=False), 0, atol=1e-12)
    end.positions[3] += np.array([0.1, 0.2, -0.1]) @ strain
    np.testing.assert_allclose(moved(end, start, remove_drift=False)[3], (0.1, 0.2, -0.1), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(-1.5, 1.5), st.booleans())
def test_lattice_translations_and_shifts_do_not_matter(seed, part, cubic):
    rng = np.random.default_rng(seed)
    cell = 6 * np.eye(3) if cubic else SKEWED
    start, end = crystal(seed, cell=cell), crystal(seed + 1, cell=cell)
    expected = moved(end, start)
    direct = end.positions - start.positions
    np.testing.assert_allclose(expected, direct - direct.mean(axis=0), atol=1e-12)
    end.positions += rng.integers(-3, 4, (8, 3)) @ cell
    # Half a cell and any other drift: the image of the drift itself is anybody's guess.
    end.positions += part * cell[0] + rng.normal(size=3)
    np.testing.assert_allclose(moved(end, start), expected, atol=1e-10)


def test_half_a_cell_of_drift_with_large_displacements():
    start, end = crystal(0, 0.0, 6 * np.eye(3)), crystal(0, 0.0, 6 * np.eye(3))
    end.positions += (3.0, 3.0, -3.0)
    end.positions[0, 0] += 2.0
    expected = np.zeros((8, 3))
    expected[0, 0] = 2.0
    np.testing.assert_allclose(moved(end, start), expected - expected.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("drift", [0.0, 0.3, 0.5])
def test_large_displacements_in_opposite_directions(drift):
    # Images chosen round anything but the drift would agree with another mean: two atoms on the wrong side.
    fractions = np.array([0.0] * 3 + [-0.28] * 2 + [0.28] * 2)
    start = Atoms("Si7", scaled_positions=np.random.default_rng(1).uniform(size=(7, 3)), cell=[10, 10, 10], pbc=True)
    end = start.copy()
    end.positions[:, 2] += 10 * (fractions + drift)
    end.wrap()
    np.testing.assert_allclose(moved(end, start), 10 * fractions[:, None] * (0, 0, 1), atol=1e-12)


def test_images_are_nearest_to_the_mean_of_what_is_left():
    # The circular mean is far from the mean here; atoms change sides twice until images and mean agree.
    fractions = np.array([-0.45] * 3 + [-0.4, -0.35] + [0.0] * 5 + [0.2, 0.2, 0.35])
    start = Atoms("Si13", scaled_positions=np.random.default_rng(0).uniform(size=(13, 3)), cell=[10, 10, 10], pbc=True)
    end = start.copy()
    end.positions[:, 0] += 10 * fractions
    settled = 10 * np.where(fractions < 0, fractions + 1, fractions)
    settled -= settled.mean()
    assert np.abs(settled).max() < 5
    found = moved(end, start)
    np.testing.assert_allclose(found[:, 0], settled, atol=1e-12)
    np.testing.assert_allclose(found[:, 1:], 0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(1, 1, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1)]))
def test_images_are_the_nearest_in_skewed_cells(seed, pbc):
    rng = np.random.default_rng(seed)
    cell = rng.normal(size=(3, 3)) * 2 + np.diag([4, 4, 4])
    # Long combinations of its vectors: the same lattice, far from reduced.
    lattice = np.array([[1, 0, 0], [3, 1, 0], [-2, 4, 1]]) if all(pbc) else np.eye(3)
    start = Atoms("Li6", positions=rng.uniform(0, 5, (6, 3)), cell=lattice @ cell, pbc=pbc)
    end = start.copy()
    end.positions += rng.normal(size=(6, 3)) * 4
    # ASE misses nearest images of slabs whose third vector leans over the plane: give it the normal.
    upright = complete_cells(batch(start), batch(start))[0].numpy()
    wrapped = find_mic(end.positions - start.positions, upright, pbc)[0]
    np.testing.assert_allclose(
        np.linalg.norm(moved(end, start, remove_drift=False), axis=1), np.linalg.norm(wrapped, axis=1), atol=1e-9
    )


@pytest.mark.parametrize("pbc", [(1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_directions_that_are_not_periodic_are_cartesian(pbc):
    start = crystal(0, cell=SKEWED)
    start.pbc = pbc
    end = start.copy()
    # Another cell vector where it has no meaning, images where it has one.
    end.cell[~end.pbc] = np.random.default_rng(0).normal(size=(3 - sum(pbc), 3))
    end.positions += np.random.default_rng(1).uniform(-0.3, 0.3, (8, 3))
    direct = end.positions - start.positions
    end.positions += np.random.default_rng(2).integers(-2, 3, (8, 3)) * np.array(pbc) @ start.cell[:]
    np.testing.assert_allclose(moved(end, start, remove_drift=False), direct, atol=1e-10)
    far = start.copy()
    normal = complete_cells(batch(start), batch(start))[0][pbc.index(0)].numpy()
    far.positions[0] += 50 * normal
    np.testing.assert_allclose(moved(far, start, remove_drift=False)[0], 50 * normal, atol=1e-10)


def test_a_slab_follows_its_plane():
    slab = fcc111("Cu", (2, 2, 3), vacuum=5)
    slab.rattle(0.05, seed=1)
    turn = Rotation.from_rotvec([0.3, -0.2, 0.8]).as_matrix()
    other = Atoms(slab.numbers, positions=slab.positions @ turn, cell=slab.cell[:] @ turn, pbc=slab.pbc)
    np.testing.assert_allclose(moved(other, slab), 0, atol=1e-12)


def test_completed_cells():
    structures = batch(crystal(), fcc111("Cu", (1, 1, 2), a=4.0, vacuum=4), molecule("H2O"))
    cells = complete_cells(structures, structures)
    assert torch.equal(cells[0], structures.cell[0])
    np.testing.assert_allclose(cells[1, 2], (0, 0, 1), atol=1e-12)
    assert torch.equal(cells[2], torch.eye(3, dtype=torch.float64))


def test_molecules_are_aligned():
    target = molecule("CH3CH2OH")
    start = target.copy()
    turn = Rotation.random(random_state=4).as_matrix()
    start.positions = start.positions @ turn + (3, -2, 7)
    assert np.abs(moved(start, target)).max() > 0.5
    np.testing.assert_allclose(moved(start, target, align=True), 0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_alignment_is_scipys(seed):
    rng = np.random.default_rng(seed)
    target = Atoms("C6", positions=rng.normal(size=(6, 3)))
    start = Atoms("C6", positions=rng.normal(size=(6, 3)))
    weights = rng.uniform(0.5, 20, 6)
    found = displacements(batch(start), batch(target), weights=torch.tensor(weights), align=True).numpy()
    centred = [a.positions - weights @ a.positions / weights.sum() for a in (start, target)]
    turn, _ = Rotation.align_vectors(centred[1], centred[0], weights=weights)
    np.testing.assert_allclose(found, turn.apply(centred[0]) - centred[1], atol=1e-7)


def test_mirror_images_are_not_aligned():
    target = Atoms("CHFClBr", positions=[(0, 0, 0), (1, 1, 1), (-1, -1, 1), (-1, 1, -1), (1, -1, -1)])
    mirrored = target.copy()
    mirrored.positions[:, 0] *= -1
    assert np.abs(moved(mirrored, target, align=True)).max() > 0.5


@pytest.mark.parametrize("remove_drift", [True, False])
def test_a_batch_is_its_structures(remove_drift):
    first = [crystal(0), fcc111("Cu", (2, 1, 2), vacuum=4), molecule("H2O"), bulk("Si")]
    second = [atoms.copy() for atoms in first]
    for number, atoms in enumerate(second):
        atoms.rattle(0.3, seed=number)
        atoms.positions += 3
    together = displacements(batch(*second), batch(*first), remove_drift=remove_drift).numpy()
    alone = [moved(b, a, remove_drift=remove_drift) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-12)


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 0), (0, 0, 0)])
@pytest.mark.parametrize("remove_drift", [True, False])
def test_gradients(pbc, remove_drift):
    start, end = crystal(0, cell=SKEWED), crystal(1, 0.3)
    start.pbc = end.pbc = pbc
    end.set_cell(end.cell[:] + 0.1 * np.random.default_rng(0).normal(size=(3, 3)), scale_atoms=True)
    end.positions[2] += 2 * np.array(pbc) @ end.cell[:]
    structures, target = batch(end), batch(start)

    def function(positions, cell, wanted, frame):
        one = replace(structures, positions=positions, cell=cell)
        return displacements(one, replace(target, positions=wanted, cell=frame), remove_drift=remove_drift)

    inputs = [structures.positions, structures.cell, target.positions, target.cell]
    assert torch.autograd.gradcheck(function, [tensor.clone().requires_grad_() for tensor in inputs])


def test_structures_that_do_not_belong_together():
    one, two = batch(crystal(), bulk("Si")), batch(crystal(), molecule("H2O"))
    with pytest.raises(InputError, match="structure 1 has 2 atoms, its target 3"):
        displacements(one, two)
    with pytest.raises(InputError, match="2 structures cannot be compared with 1 targets"):
        displacements(one, batch(crystal()))
    slab = crystal()
    slab.pbc = (True, False, True)
    with pytest.raises(InputError, match=r"structure 0 has pbc=\[True, True, True\], its target \[True, False, True\]"):
        displacements(batch(crystal()), batch(slab))
    with pytest.raises(InputError, match=r"structure 1 has pbc=\[True, False, True\], its target \[True, True, True\]"):
        displacements(batch(crystal(), slab), batch(crystal(), crystal()))
    mixed = replace(one, batch=one.batch.flip(0))
    with pytest.raises(InputError, match=r"structure 0 has 2 atoms|another order"):
        displacements(mixed, one)


def test_options_that_make_no_sense():
    water, solid = batch(molecule("H2O")), batch(molecule("H2O"), bulk("Si"))
    with pytest.raises(InputError, match="align=True is for molecules, but structure 1 is periodic"):
        displacements(solid, solid, align=True)
    with pytest.raises(InputError, match="needs remove_drift=True"):
        displacements(water, water, align=True, remove_drift=False)
    for weights in (torch.tensor([1.0, 0.0, 1.0]), torch.ones(4)):
        with pytest.raises(InputError, match="weights must be positive, one for each of 3 atoms"):
            displacements(water, water, weights=weights)
