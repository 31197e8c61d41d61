from __future__ import annotations

import re

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.io import read
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_finetune.data.pair_checks import best_assignment, check_pair, moved
from ase_finetune.errors import DataError
from tests.data.conftest import salt


def relaxed_salt(spread: float = 0.05) -> Atoms:
    """A little off from :func:`salt`, with another cell."""
    atoms = salt(7, spread=spread)
    atoms.set_cell(atoms.cell[:] @ np.diag([1.05, 1.02, 0.97]), scale_atoms=True)
    return atoms


def test_a_good_pair():
    assert check_pair(salt(0), relaxed_salt(), "pair 0") is None


def broken(change: str) -> Atoms:
    atoms = relaxed_salt()
    if change == "count":
        del atoms[5]
    elif change == "element":
        atoms.symbols[2] = "K"
    elif change == "order":
        atoms = atoms[[0, 1, 4, 3, 2, 5, 6, 7]]
    elif change == "pbc":
        atoms.pbc = (True, True, False)
    elif change == "nan":
        atoms.positions[4, 1] = np.nan
    return atoms


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("count", "pair 3: 8 atoms in the initial structure and 7 in the relaxed one"),
        ("element", "pair 3: atom 2 is Na in the initial structure and K in the relaxed one"),
        ("order", "atoms are permuted: atom 2 is Na in the initial structure and Cl in the relaxed one; both hold"),
        ("pbc", "pair 3: pbc is [True, True, True] in the initial structure and [True, True, False] in the relaxed"),
        ("nan", "pair 3, relaxed structure: position of atom 4 (Cl) is not finite"),
    ],
)
def test_pairs_of_different_atoms(change, message):
    with pytest.raises(DataError, match="^.*" + re.escape(message)) as caught:
        check_pair(salt(0), broken(change), "pair 3")
    assert ("permuted" in str(caught.value)) == (change == "order")


def test_nothing_moved():
    atoms = salt(0)
    for shift in (0.0, 5e-7):
        other = atoms.copy()
        other.positions += shift
        with pytest.raises(DataError, match="the relaxed structure is the initial one"):
            check_pair(atoms, other, "pair 0")
    strained = atoms.copy()
    strained.set_cell(atoms.cell[:] + 2e-6)
    assert check_pair(atoms, strained, "pair 0") is None


def test_swapped_atoms_are_named():
    other = relaxed_salt(spread=0.02)
    other.positions[[1, 2]] = other.positions[[2, 1]]
    message = (
        r"pair 0: atoms 1 and 2 \(Na\) look swapped: relabelled, they are within 0\.\d\d Å of their sites instead of"
    )
    with pytest.raises(DataError, match=message):
        check_pair(salt(0, spread=0.05), other, "pair 0")


def test_longer_cycles_are_named():
    other = relaxed_salt(spread=0.02)
    other.positions[[1, 2, 3]] = other.positions[[2, 3, 1]]
    other.positions[[4, 6]] = other.positions[[6, 4]]
    with pytest.raises(DataError, match=r"atoms 1, (2 and 3|3 and 2) \(Na\), atoms 4 and 6 \(Cl\) look swapped"):
        check_pair(salt(0, spread=0.05), other, "pair 0")


def test_swaps_between_very_different_structures_are_a_note():
    other = relaxed_salt(spread=0.02)
    other.positions[[1, 2]] = other.positions[[2, 1]]
    other.positions[7] += (0.6, 0, 0)
    note = check_pair(salt(0, spread=0.05), other, "pair 0")
    assert note is not None
    assert note.startswith("pair 0: atoms 1 and 2 (Na) may be swapped")


def test_hops_are_no_swaps():
    atoms = Atoms("Li3", positions=[(0, 0, 0), (2.5, 0, 0), (5, 0, 0)], cell=[10, 6, 6], pbc=True)
    hopped = atoms.copy()
    # A chain moves on by one site each: no relabelling of equal atoms is closer than that.
    hopped.positions += [(2.5, 0, 0), (2.5, 0, 0), (0, 2.5, 0)]
    assert check_pair(atoms, hopped, "pair 0") is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)), st.permutations(range(4, 8)))
def test_relabelling_is_undone(seed, sodium, chlorine):
    initial, relaxed = salt(seed, spread=0.03), relaxed_salt(spread=0.03)
    relaxed.positions += np.random.default_rng(seed).uniform(-0.3, 0.3, 3)
    shuffled = relaxed[[*sodium, *chlorine]]
    assignment, vectors = best_assignment(initial, shuffled)
    assert np.linalg.norm(vectors, axis=1).max() < 0.3
    # Some permutations are translations of the salt, and drift explains them as well; of some others it explains so
    # much that those atoms alone are far which are not relabelled.
    distances = np.linalg.norm(moved(initial, shuffled), axis=1)
    if distances[assignment != np.arange(8)].max(initial=0.0) > 1.0:
        with pytest.raises(DataError, match="look swapped"):
            check_pair(initial, shuffled, "pair 0")
    elif distances.max() > 1.0:
        check_pair(initial, shuffled, "pair 0")
    else:
        assert check_pair(initial, shuffled, "pair 0") is None


def test_displacements_by_hand():
    cell = np.array([[4.0, 0, 0], [1.0, 5.0, 0], [0, 0, 6.0]])
    initial = Atoms("NaCl", scaled_positions=[(0.0, 0, 0), (0.5, 0.5, 0.5)], cell=cell, pbc=True)
    relaxed = initial.copy()
    relaxed.set_cell(1.2 * cell, scale_atoms=True)
    np.testing.assert_allclose(moved(initial, relaxed), 0, atol=1e-12)
    relaxed.positions += [(0.1, 0, 0), (0.3, 0, 0)]
    relaxed.positions += 1.2 * cell[0] * 3 + 0.5 * cell[1]
    np.testing.assert_allclose(moved(initial, relaxed), [(0.1, 0, 0), (-0.1, 0, 0)], atol=1e-12)


def test_slabs_and_molecules():
    slab = fcc111("Cu", (2, 2, 2), vacuum=5)
    slab.rattle(0.05, seed=0)
    other = slab.copy()
    # Another vacuum is no strain of the slab.
    other.cell[2, 2] += 3
    other.positions += slab.cell[0]
    np.testing.assert_allclose(moved(slab, other), 0, atol=1e-12)
    other.positions[0, 2] += 0.8
    np.testing.assert_allclose(moved(slab, other)[0], (0, 0, -0.7), atol=1e-12)
    molecule = Atoms("CO", positions=[(0, 0, 0), (0, 0, 1.1)])
    longer = Atoms("CO", positions=[(0, 0, 0), (0, 0, 1.3)])
    np.testing.assert_allclose(moved(molecule, longer), [(0, 0, 0.1), (0, 0, -0.1)], atol=1e-12)


@pytest.mark.data
@pytest.mark.parametrize("stem", ["crystal_pairs_train", "crystal_pairs_valid", "argyrodite_pairs_train"])
def test_swaps_in_real_pairs_never_pass(data_folder, stem):
    initial, relaxed = (read(data_folder / f"{stem}_{end}.extxyz", ":") for end in ("initial", "relaxed"))
    rng = np.random.default_rng(0)
    silent = tried = 0
    for before, after in zip(initial, relaxed, strict=True):
        assert check_pair(before, after, "pair") is None
        numbers = [z for z in np.unique(after.numbers) if (after.numbers == z).sum() > 1]
        if not numbers:
            continue
        swap = rng.choice(np.flatnonzero(after.numbers == rng.choice(numbers)), 2, replace=False)
        swapped = after.copy()
        swapped.positions[swap] = swapped.positions[swap[::-1]]
        tried += 1
        try:
            silent += check_pair(before, swapped, "pair") is None
        except DataError as error:
            assert "look swapped" in str(error)  # noqa: PT017
    assert tried > 50
    assert silent <= 0.01 * tried
