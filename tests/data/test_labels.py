from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from ase_finetune.data import read_frames
from ase_finetune.data.labels import find_labels
from ase_finetune.errors import DataError
from tests.data.conftest import labelled, salt

NO_KEYS: dict[str, str | None] = {}


def test_calculator_results_prefer_the_free_energy():
    atoms = labelled(0, energy=-1.0, free_energy=-2.0)
    labels = find_labels(atoms, NO_KEYS, "x")
    assert labels.energy == -2.0
    assert labels.sources == {"energy": "free_energy (calc)", "forces": "forces (calc)", "stress": "stress (calc)"}


def test_ref_keys_come_before_the_calculator():
    atoms = labelled(0, energy=-1.0)
    atoms.info["REF_energy"] = -3.0
    atoms.arrays["REF_forces"] = np.ones((8, 3))
    labels = find_labels(atoms, NO_KEYS, "x")
    assert labels.energy == -3.0
    assert labels.forces is not None
    assert (labels.forces == 1).all()
    assert labels.sources["stress"] == "stress (calc)"


def test_bare_keys_are_the_last_resort():
    atoms = salt(0)
    atoms.info.update(energy=-4.0, stress=np.arange(6.0))
    atoms.arrays["force"] = np.full((8, 3), 2.0)
    labels = find_labels(atoms, NO_KEYS, "x")
    assert labels.energy == -4.0
    assert labels.sources == {"energy": "energy (info)", "forces": "force (arrays)", "stress": "stress (info)"}


@pytest.mark.parametrize("key", ["REF_virials", "REF_virial", "virial", "virials"])
def test_virials_become_stress(key):
    atoms = salt(0)
    virial = np.array([[1.0, 0.1, 0.2], [0.1, 2.0, 0.3], [0.2, 0.3, 3.0]])
    atoms.info[key] = virial
    stress = find_labels(atoms, NO_KEYS, "x").stress
    np.testing.assert_allclose(stress, -np.array([1, 2, 3, 0.3, 0.2, 0.1]) / atoms.get_volume(), rtol=1e-14)


@pytest.mark.parametrize("shape", [(9,), (3, 3)])
def test_full_stress_becomes_voigt(shape):
    atoms = salt(0)
    atoms.info["REF_stress"] = np.array([1.0, 6, 5, 6, 2, 4, 5, 4, 3]).reshape(shape)
    np.testing.assert_array_equal(find_labels(atoms, NO_KEYS, "x").stress, [1, 2, 3, 4, 5, 6])


def test_forces_of_constrained_atoms_are_raw():
    atoms = labelled(0, forces=np.ones((8, 3)))
    atoms.set_constraint(FixAtoms([0, 1]))
    assert (find_labels(atoms, NO_KEYS, "x").forces == 1).all()


def test_stress_without_a_cell_counts_as_missing():
    atoms = Atoms("H2", [(0, 0, 0), (0, 0, 0.7)])
    atoms.info.update(REF_energy=-1.0, REF_stress=np.zeros(6), virial=np.zeros((3, 3)))
    labels = find_labels(atoms, NO_KEYS, "x")
    assert labels.stress is None
    assert labels.energy == -1.0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"energy": np.ones(2)}, r"energy label 'energy' \(calc\) has shape \(2,\), expected a single number"),
        ({"energy": np.nan}, "energy .* is not finite: nan"),
        ({"forces": np.ones((7, 3))}, r"forces .* has shape \(7, 3\), expected \(8, 3\)"),
        ({"forces": np.array([[0, 0, 0]] * 5 + [[0, np.inf, 0]] * 3)}, r"forces .* not finite on atom 5 \("),
        ({"stress": np.ones(5)}, r"stress .* has shape \(5,\), expected \(6,\) or \(3, 3\)"),
        ({"stress": np.array([0, 0, 0, np.nan, 0, 0])}, "stress .* not finite in yz"),
        ({"stress": np.arange(9.0).reshape(3, 3)}, "stress .* is not symmetric"),
    ],
)
def test_bad_labels_are_refused_naming_the_frame(labels, message):
    with pytest.raises(DataError, match=r"frame 1 of train \(list\): " + message):
        read_frames([labelled(0), labelled(1, **labels)])


def test_label_that_is_no_number():
    atoms = salt(0)
    atoms.info["REF_energy"] = "low"
    with pytest.raises(DataError, match=r"frame 0 of train \(list\): energy .* is not numeric: 'low'"):
        read_frames([atoms])


def test_changed_geometry_is_refused():
    atoms = labelled(0)
    atoms.positions[3] += 0.1
    with pytest.raises(DataError, match=r"frame 0 .* another geometry"):
        read_frames([atoms])


def test_one_calculator_for_several_frames_is_refused():
    calc = EMT()
    frames = [salt(seed, "Cu4Au4") for seed in (0, 1)]
    for atoms in frames:
        atoms.calc = calc
        atoms.get_forces()
    with pytest.raises(DataError, match=r"frame 0 .* share one calculator"):
        read_frames(frames)


def test_explicit_keys():
    atoms = labelled(0)
    atoms.info["dft_energy"] = -7.0
    atoms.arrays["dft_forces"] = np.full((8, 3), 7.0)
    atoms.info["dft_virial"] = -np.eye(3) * atoms.get_volume()
    frames = read_frames([atoms], energy_key="dft_energy", forces_key="dft_forces", stress_key="dft_virial")
    assert frames[0].energy == -7.0
    assert frames[0].forces is not None
    assert (frames[0].forces == 7).all()
    np.testing.assert_allclose(frames[0].stress, [1, 1, 1, 0, 0, 0], atol=1e-14)
    assert frames.label_sources["energy"] == "dft_energy (info)"
    assert not {"dft_energy", "dft_virial"} & set(frames[0].atoms.info)
    assert "dft_forces" not in frames[0].atoms.arrays


def test_explicit_key_takes_nothing_else_where_it_is_missing():
    with_key = labelled(0)
    with_key.info["dft_energy"] = -7.0
    assert [frame.energy for frame in read_frames([with_key, labelled(1)], energy_key="dft_energy")] == [-7.0, None]


def test_explicit_key_that_exists_nowhere():
    message = r"train: no frame has forces_key='dft_forces'; the keys seen are .*calc: energy, forces, stress"
    with pytest.raises(DataError, match=message):
        read_frames([labelled(0)], forces_key="dft_forces")


def test_no_labels_at_all_lists_the_keys():
    atoms = salt(0)
    atoms.info.update(run=3, dft_energy=-1.0)
    atoms.arrays["DFT_f"] = np.zeros((8, 3))
    with pytest.raises(DataError, match=r"train: none of 1 frames .* info: dft_energy, run; arrays: DFT_f; calc: none"):
        read_frames([atoms])


def test_overlooked_and_mixed_keys_are_noted():
    first, second = labelled(0), salt(1)
    first.info["dft_energy"] = -1.0
    first.calc = SinglePointCalculator(first, forces=np.zeros((8, 3)))
    second.arrays["REF_forces"] = np.zeros((8, 3))
    notes = read_frames([first, second]).notes
    assert any("no energy labels" in note and "dft_energy" in note for note in notes)
    assert any("forces (calc) in 1 frames" in note and "REF_forces (arrays) in 1" in note for note in notes)
