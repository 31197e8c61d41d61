from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from ase_finetune.errors import InputError
from ase_finetune.graphs import check_atoms, neighbor_list
from tests.graphs.edges import as_set, brute_force

CUTOFF = 4.0


def cases() -> dict[str, Atoms]:
    rng = np.random.default_rng(3)
    silicon = bulk("Si", cubic=True)
    silicon.positions += rng.normal(scale=0.1, size=(8, 3))
    skewed = Atoms("Si5", scaled_positions=rng.random((5, 3)), cell=[[5, 0, 0], [9.0, 5, 0], [-7.0, 6, 5]], pbc=True)
    outside = silicon.copy()
    outside.positions += rng.integers(-3, 4, size=(8, 3)) @ outside.cell[:]
    left_handed = silicon.copy()
    left_handed.set_cell(silicon.cell[[1, 0, 2]])
    slab = fcc111("Al", (2, 2, 3), vacuum=5.0)
    no_third = fcc111("Al", (2, 2, 3))
    no_third.cell[2] = 0.0
    assert no_third.pbc.tolist() == [True, True, False]
    in_plane = no_third.copy()
    in_plane.cell[2] = in_plane.cell[0] + in_plane.cell[1]
    wire = Atoms("Au3", positions=[[0, 0, 0], [0.3, 1.0, 2.5], [-0.5, 0.2, 5.1]], cell=[0, 0, 7.3], pbc=[0, 0, 1])
    box = molecule("CH3CH2OH", vacuum=3.0)
    return {
        "bulk": silicon,
        "skewed": skewed,
        "outside": outside,
        "left-handed": left_handed,
        "slab": slab,
        "slab without third vector": no_third,
        "slab, third vector in the plane": in_plane,
        "wire": wire,
        "molecule": molecule("CH3CH2OH"),
        "molecule in a box": box,
        "one atom": bulk("Cu", a=3.6),
        "isolated atom": Atoms("O", positions=[(1.0, 2.0, 3.0)]),
    }


@pytest.mark.parametrize("name", cases())
def test_same_edges_as_brute_force(name):
    atoms = cases()[name]
    expected = brute_force(atoms, CUTOFF)
    assert as_set(neighbor_list(atoms, CUTOFF)) == expected
    if name != "isolated atom":
        assert expected


def test_types_and_shapes():
    for atoms in (bulk("Si"), Atoms("O", positions=[(0, 0, 0)])):
        edge_index, edge_shift = neighbor_list(atoms, CUTOFF)
        assert edge_index.dtype == np.int64
        assert edge_shift.dtype == np.float64
        assert edge_index.shape == (2, edge_shift.shape[0])
        assert edge_shift.shape[1:] == (3,)


def test_one_atom_sees_its_own_images():
    edge_index, edge_shift = neighbor_list(bulk("Cu", a=3.6), 3.0)  # nearest neighbours at a/sqrt(2) = 2.55 Å
    assert edge_index.tolist() == [[0] * 12, [0] * 12]
    assert np.abs(edge_shift).sum(axis=1).min() > 0


def test_non_finite_position_names_the_atom():
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.positions[1, 2] = np.nan
    with pytest.raises(InputError, match=r"position of atom 1 \(Cl\) is not finite.*nan"):
        neighbor_list(atoms, CUTOFF)
    atoms.positions[1, 2] = np.inf
    with pytest.raises(ValueError, match=r"atom 1 \(Cl\)"):
        check_atoms(atoms)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_coinciding_atoms_are_both_named(shift):
    atoms = Atoms("SiGeO", positions=[(0, 0, 0), (2.5, 0, 0), (2.5, 0, 1e-6)], cell=[6, 6, 6], pbc=True)
    atoms.positions[2] += shift * atoms.cell[1]  # also through a cell boundary
    with pytest.raises(InputError, match=r"atoms (1 \(Ge\) and 2 \(O\)|2 \(O\) and 1 \(Ge\)) coincide"):
        neighbor_list(atoms, CUTOFF)


def test_close_atoms_are_no_error():
    atoms = Atoms("SiO", positions=[(0, 0, 0), (0, 0, 0.01)])
    assert neighbor_list(atoms, CUTOFF)[0].shape == (2, 2)


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        ([[0, 0, 0]] * 3, True),
        ([[4, 0, 0], [0, 4, 0], [4, 4, 0]], True),
        ([[4, 0, 0], [0, 4, 0], [0, 0, 0]], True),
        ([[4, 0, 0], [8, 0, 0], [0, 0, 4]], [True, True, False]),
        ([[0, 0, 0]] * 3, [False, False, True]),
    ],
)
def test_periodic_cell_without_volume(cell, pbc):
    atoms = Atoms("Si", positions=[(0, 0, 0)], cell=cell, pbc=pbc)
    with pytest.raises(InputError, match=r"pbc=\[.*\] needs a cell that spans a volume, but the cell is \[\["):
        neighbor_list(atoms, CUTOFF)


def test_thin_but_valid_cell():
    atoms = Atoms("Si", positions=[(0, 0, 0)], cell=[2.0, 2.0, 300.0], pbc=True)
    assert as_set(neighbor_list(atoms, CUTOFF)) == brute_force(atoms, CUTOFF)


@pytest.mark.parametrize("lengths", [(1e-4, 0.5, 1.0), (2.0, 1e4, 1e6)])
def test_directions_span_a_volume_whatever_the_lengths(lengths):
    directions = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1]]) * np.array(lengths)[:, None]
    check_atoms(Atoms("Si", cell=directions, pbc=True))
    # Vectors 1e-8 from parallel are parallel however long they are.
    directions[1] = directions[0] * (lengths[1] / lengths[0]) + (0, 1e-8 * lengths[1], 0)
    with pytest.raises(InputError, match="spans a volume"):
        check_atoms(Atoms("Si", cell=directions, pbc=True))


def test_cell_that_is_not_finite():
    atoms = Atoms("Si", positions=[(0, 0, 0)], cell=[4, 4, 4], pbc=True)
    atoms.cell[0, 0] = np.nan
    with pytest.raises(InputError, match="the cell is not finite"):
        check_atoms(atoms)


def test_no_atoms():
    with pytest.raises(InputError, match="no atoms"):
        neighbor_list(Atoms(), CUTOFF)
