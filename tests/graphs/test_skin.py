from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_finetune.errors import InputError
from ase_finetune.graphs import SkinNeighborList
from tests.graphs.edges import as_set, brute_force, within

CUTOFF = 4.0


class TestSkin:
    def test_negative_skin(self):
        with pytest.raises(InputError, match=r"skin must not be negative, got -0\.1"):
            SkinNeighborList(CUTOFF, -0.1)

    def test_rebuilt_when_an_atom_has_moved_half_the_skin(self):
        atoms = bulk("Si", cubic=True)
        neighbors = SkinNeighborList(CUTOFF, skin=0.6)
        first = neighbors.update(atoms)
        assert as_set(first) == brute_force(atoms, CUTOFF + 0.6)
        atoms.positions[3, 0] += 0.2999
        assert neighbors.update(atoms) is first
        assert neighbors.rebuilds == 1
        atoms.positions[3, 0] += 0.0002
        assert neighbors.update(atoms) is not first
        assert neighbors.rebuilds == 2
        # The displacement counts from the last rebuild on.
        atoms.positions[3, 0] += 0.2999
        neighbors.update(atoms)
        assert neighbors.rebuilds == 2

    def test_many_small_steps_add_up(self):
        atoms = bulk("Si", cubic=True)
        neighbors = SkinNeighborList(CUTOFF, skin=0.5)
        for _ in range(20):
            neighbors.update(atoms)
            atoms.positions[0, 1] += 0.06  # rebuilds at 0.30, 0.60, ...: after 5, 10 and 15 steps
        assert neighbors.rebuilds == 4

    def test_without_skin_every_structure_is_new(self):
        atoms = bulk("Si")
        neighbors = SkinNeighborList(CUTOFF)
        for _ in range(3):
            neighbors.update(atoms)
        assert neighbors.rebuilds == 3

    def test_holds_every_edge_of_a_moving_structure(self):
        rng = np.random.default_rng(1)
        atoms = bulk("Si", cubic=True)
        atoms.positions += rng.normal(scale=0.2, size=(8, 3))
        neighbors = SkinNeighborList(CUTOFF, skin=0.5)
        for _ in range(30):
            atoms.positions += rng.normal(scale=0.03, size=(8, 3))
            assert within(neighbors.update(atoms), atoms, CUTOFF) == brute_force(atoms, CUTOFF)
        assert 1 < neighbors.rebuilds < 30

    def test_atom_that_crosses_the_cutoff(self):
        atoms = Atoms("Si2", positions=[(0, 0, 0), (0, 0, CUTOFF + 0.2)])
        neighbors = SkinNeighborList(CUTOFF, skin=1.0)
        assert within(neighbors.update(atoms), atoms, CUTOFF) == set()
        atoms.positions[1, 2] -= 0.4
        assert within(neighbors.update(atoms), atoms, CUTOFF) == {(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)}
        assert neighbors.rebuilds == 1

    def test_wrapped_atom(self):
        atoms = Atoms("Si2", positions=[(0.1, 0, 0), (2.0, 0, 0)], cell=[5, 5, 5], pbc=True)
        neighbors = SkinNeighborList(CUTOFF, skin=1.0)
        neighbors.update(atoms)
        atoms.positions[0, 0] -= 0.2
        atoms.wrap()
        assert within(neighbors.update(atoms), atoms, CUTOFF) == brute_force(atoms, CUTOFF)

    @pytest.mark.parametrize("change", ["pbc", "fewer atoms", "more atoms"])
    def test_other_changes_rebuild(self, change):
        atoms = bulk("Si", cubic=True)
        neighbors = SkinNeighborList(CUTOFF, skin=0.5)
        neighbors.update(atoms)
        if change == "pbc":
            atoms.pbc[2] = False
        elif change == "fewer atoms":
            atoms = atoms[:-1]
        else:
            atoms += Atoms("H", positions=[(1.0, 2.0, 3.0)])
        assert as_set(neighbors.update(atoms)) == brute_force(atoms, CUTOFF + 0.5)
        assert neighbors.rebuilds == 2

    def test_a_broken_structure_is_noticed(self):
        atoms = bulk("Si")
        neighbors = SkinNeighborList(CUTOFF, skin=0.5)
        neighbors.update(atoms)
        atoms.positions[1] = np.nan
        with pytest.raises(InputError, match="atom 1"):
            neighbors.update(atoms)


def deformed(atoms, seed, strain, moved):
    """A copy in a cell changed by a random deformation (rotation and shear included), its atoms displaced."""
    rng = np.random.default_rng(seed)
    changed = atoms.copy()
    changed.positions += rng.uniform(-moved, moved, size=(len(atoms), 3))
    deformation = np.eye(3) + rng.uniform(-strain, strain, size=(3, 3))
    changed.set_cell(atoms.cell[:] @ deformation, scale_atoms=False)
    changed.positions[:] = changed.positions @ deformation
    return changed


SKEWED = Atoms(
    "SiOC",
    positions=[(0.2, 0, 0), (1.5, 1.0, 0.3), (7.0, 2.0, 2.5)],
    cell=[[4, 0, 0], [5.5, 4, 0], [-4.5, 4.5, 4]],
    pbc=True,
)


class TestSkinOfChangingCells:
    @given(
        seed=st.integers(0, 2**32 - 1),
        strain=st.sampled_from([0.005, 0.02, 0.06, 0.4]),
        moved=st.floats(0.0, 0.3),
        pbc=st.lists(st.booleans(), min_size=3, max_size=3),
    )
    @settings(max_examples=150, deadline=None)
    def test_no_pair_is_missed(self, seed, strain, moved, pbc):
        start = SKEWED.copy()
        start.pbc = pbc
        neighbors = SkinNeighborList(CUTOFF, skin=1.0)
        neighbors.update(start)
        changed = deformed(start, seed, strain, moved)
        assert within(neighbors.update(changed), changed, CUTOFF) == brute_force(changed, CUTOFF)

    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("excess", [1e-6, -1e-6])
    def test_the_bound_is_sharp(self, seed, excess):
        # Two atoms just beyond the skin, along what the deformation shortens most, move towards each other.
        skin, moved = 1.0, 0.12
        rng = np.random.default_rng(seed)
        left, stretch, right = np.linalg.svd(np.eye(3) + rng.normal(scale=0.04, size=(3, 3)))
        stretch *= CUTOFF * (1 + excess) / (CUTOFF + skin - 2 * moved) / stretch[-1]
        deformation, direction = left @ np.diag(stretch) @ right, left[:, -1]
        apart = CUTOFF + skin + 1e-9
        atoms = Atoms("Si2", positions=[0 * direction, apart * direction], cell=30 * rng.normal(size=(3, 3)), pbc=False)
        neighbors = SkinNeighborList(CUTOFF, skin)
        assert as_set(neighbors.update(atoms)) == set()
        atoms.positions += moved * np.array([direction, -direction])
        atoms.positions[:] = atoms.positions @ deformation
        atoms.cell[:] = atoms.cell[:] @ deformation
        assert atoms.get_distance(0, 1) == pytest.approx(CUTOFF * (1 + excess), rel=1e-8)
        assert within(neighbors.update(atoms), atoms, CUTOFF) == brute_force(atoms, CUTOFF)
        assert neighbors.rebuilds == (1 if excess > 0 else 2)

    @pytest.mark.parametrize("turn", [0.0, 1.0])
    def test_small_changes_do_not_rebuild(self, turn):
        atoms = bulk("Si", cubic=True)
        neighbors = SkinNeighborList(CUTOFF, skin=0.5)
        first = neighbors.update(atoms)
        for step in range(5):
            changed = atoms.copy()
            changed.set_cell(atoms.cell[:] * (1 - 0.015 * step), scale_atoms=True)
            changed.rotate(40 * turn * step, (1, 2, 3), rotate_cell=True)
            changed.translate(0.01 * step)
            assert neighbors.update(changed) is first
        assert neighbors.rebuilds == 1

    def test_a_growing_cell_leaves_more_room(self):
        atoms = bulk("Si", cubic=True)
        neighbors = SkinNeighborList(CUTOFF, skin=0.5)
        neighbors.update(atoms)
        atoms.set_cell(atoms.cell[:] * 1.05, scale_atoms=True)
        atoms.positions[0, 0] += 0.3  # more than half the skin
        assert within(neighbors.update(atoms), atoms, CUTOFF) == brute_force(atoms, CUTOFF)
        assert neighbors.rebuilds == 1

    @pytest.mark.parametrize("change", ["collapsed", "atoms left behind", "mirrored"])
    def test_large_changes_rebuild(self, change):
        atoms = bulk("Si", cubic=True)
        neighbors = SkinNeighborList(CUTOFF, skin=0.5)
        neighbors.update(atoms)
        if change == "collapsed":
            atoms.set_cell(atoms.cell[:] * [1, 1, 0.45], scale_atoms=True)
        elif change == "atoms left behind":
            atoms.set_cell(atoms.cell[:] * 0.95, scale_atoms=False)
        else:
            atoms.cell[0] *= -1
        assert as_set(neighbors.update(atoms)) == brute_force(atoms, CUTOFF + 0.5)
        assert neighbors.rebuilds == 2

    @pytest.mark.parametrize("third", [(0.0, 0.0, 0.0), (1.0, 1.0, 0.0)])
    def test_cell_without_volume(self, third):
        # What is not periodic may have any vector; then there is no deformation to bound.
        atoms = fcc111("Al", (2, 2, 2))
        atoms.cell[2] = third @ atoms.cell[:]
        neighbors = SkinNeighborList(CUTOFF, skin=0.5)
        neighbors.update(atoms)
        atoms.set_cell(atoms.cell[:] * 1.001, scale_atoms=False)
        assert as_set(neighbors.update(atoms)) == brute_force(atoms, CUTOFF + 0.5)
        atoms.positions[0, 0] += 0.1
        neighbors.update(atoms)
        assert neighbors.rebuilds == 2

    def test_a_cell_that_breaks_is_noticed(self):
        atoms = bulk("Si")
        neighbors = SkinNeighborList(CUTOFF, skin=0.5)
        neighbors.update(atoms)
        for broken, message in ((np.nan, "not finite"), (0.0, "spans a volume")):
            changed = atoms.copy()
            changed.cell[1] *= broken
            with pytest.raises(InputError, match=message):
                neighbors.update(changed)
