from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write

from ase_finetune.data import FrameSet, read_frames
from ase_finetune.data.frame import fingerprint
from ase_finetune.errors import DataError, InputError
from ase_finetune.graphs import collate
from tests.data.conftest import labelled, salt


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "db"])
def test_files_give_what_was_written(tmp_path, trajectory, suffix):
    path = tmp_path / f"set.{suffix}"
    if suffix == "db":
        with connect(path) as db:
            for atoms in trajectory:
                db.write(atoms)
    else:
        write(path, trajectory)
    frames = read_frames(path)
    assert len(frames) == 10
    assert frames.num_labels == {"energy": 10, "forces": 10, "stress": 10}
    assert frames[7].source == path.name
    assert frames[7].index == 7
    for frame, atoms in zip(frames, trajectory, strict=True):
        assert frame.atoms.calc is None
        assert frame.energy == pytest.approx(atoms.calc.results["energy"], abs=1e-7)
        np.testing.assert_allclose(frame.forces, atoms.calc.results["forces"], atol=1e-7)
        np.testing.assert_allclose(frame.stress, atoms.calc.results["stress"], atol=1e-7)


def test_part_of_a_file_and_several_files(tmp_path, trajectory):
    write(tmp_path / "a.extxyz", trajectory[:4])
    write(tmp_path / "b.extxyz", trajectory[4:])
    assert len(read_frames(f"{tmp_path}/a.extxyz@1:3")) == 2
    assert len(read_frames(f"{tmp_path}/a.extxyz@-1")) == 1
    both = read_frames([tmp_path / "a.extxyz", str(tmp_path / "b.extxyz")])
    assert [frame.index for frame in both] == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert len({frame.group for frame in both}) == 2


def test_at_sign_in_a_file_name(tmp_path, trajectory):
    write(tmp_path / "run@300K.extxyz", trajectory)
    assert len(read_frames(tmp_path / "run@300K.extxyz")) == 10


def test_one_structure_and_frame_sets(trajectory):
    assert len(read_frames(trajectory[0])) == 1
    frames = read_frames(trajectory)
    again = read_frames(frames, name="valid")
    assert again.name == "valid"
    assert again.frames == frames.frames
    with pytest.raises(InputError, match="label keys have no effect on a FrameSet"):
        read_frames(frames, energy_key="energy")


def test_input_is_left_alone(trajectory):
    trajectory[0].info["REF_energy"] = -1.0
    read_frames(trajectory)
    assert trajectory[0].info == {"REF_energy": -1.0}
    assert trajectory[0].calc is not None


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([], DataError, "train: the list holds no structures"),
        ("missing.extxyz", DataError, "train: there is no file 'missing.extxyz'"),
        (3, InputError, "train: expected a path.* got 3 of type int"),
        ([1, 2], InputError, "got 1 of type int"),
    ],
)
def test_sources_that_cannot_be_used(source, error, message):
    with pytest.raises(error, match=message):
        read_frames(source)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    (tmp_path / "empty.extxyz").write_text("")
    write(tmp_path / "empty.traj", [])
    with pytest.raises(DataError, match=r"ASE cannot read '.*notes.txt'"):
        read_frames(tmp_path / "notes.txt")
    for name in ("empty.extxyz", "empty.traj"):
        with pytest.raises(DataError, match=name):
            read_frames(tmp_path / name)


def test_broken_structures_are_named():
    bad = salt(1)
    bad.positions[3, 0] = np.nan
    with pytest.raises(DataError, match=r"frame 1 of train \(list\): position of atom 3 \(.*\) is not finite"):
        read_frames([labelled(0), bad])


def test_graphs_carry_labels_and_masks(trajectory):
    del trajectory[1].calc.results["stress"]
    del trajectory[1].calc.results["energy"]
    frames = read_frames(trajectory[:2])
    batch = collate(frames.graphs(4.0))
    assert batch.energy is not None
    assert batch.energy_mask is not None
    assert batch.stress_mask is not None
    assert batch.forces_mask is not None
    assert batch.energy_mask.tolist() == [True, False]
    assert batch.stress_mask.tolist() == [True, False]
    assert bool(batch.forces_mask.all())
    assert float(batch.energy[0]) == frames[0].energy
    assert batch.energy.dtype == batch.positions.dtype == torch.float64


def test_graphs_name_the_frame():
    bad = labelled(1)
    bad.positions[2] = bad.positions[5]
    bad.calc = SinglePointCalculator(bad, energy=0.0)
    frames = read_frames([labelled(0), bad], name="valid").select([1])
    with pytest.raises(DataError, match=r"frame 1 of valid \(list\): atoms 2 \(.*\) and 5 \(.*\) coincide"):
        frames.graphs(4.0)


def test_select_slices_and_elements(trajectory):
    frames = read_frames([*trajectory, labelled(99, "Li4Cl4")])
    assert frames.elements == (3, 11, 17)
    assert [frame.index for frame in frames.select([4, 1])] == [4, 1]
    part = frames[-1:]
    assert isinstance(part, FrameSet)
    assert part.elements == (3, 17)
    assert frames.select([0], name="x").name == "x"


def test_digest_depends_on_structures_and_labels_only(tmp_path, trajectory):
    frames = read_frames(trajectory)
    write(tmp_path / "a.traj", trajectory)
    assert read_frames(tmp_path / "a.traj", name="other").digest() == frames.digest()
    assert frames.select(reversed(range(10))).digest() != frames.digest()
    energies = [frame.energy for frame in frames]
    assert frames.with_energies(energies).digest() == frames.digest()
    assert frames.with_energies([*energies[:-1], None]).digest() != frames.digest()
    trajectory[0].positions[0, 0] += 1e-6
    moved = Atoms(trajectory[0])
    moved.calc = SinglePointCalculator(moved, **trajectory[0].calc.results)
    assert read_frames([moved]).digest() != frames[:1].digest()


def test_digest_is_stable():
    atoms = Atoms("NaCl", [(0, 0, 0), (0, 0, 2.8)], cell=[4.0, 4.0, 5.6], pbc=True)
    frames = FrameSet.from_atoms([atoms], energies=[-1.5], forces=[np.zeros((2, 3))])
    assert frames.digest() == "6556f3f2b6f60a0dbe9de39ffd45884ba7194ee741fedde66219081c91812e38"


def test_from_atoms_takes_the_labels_given(trajectory):
    read = FrameSet.from_atoms(trajectory)
    assert read.num_labels["stress"] == 10
    given = FrameSet.from_atoms(trajectory, name="replay", energies=[1.0] * 10)
    assert given.num_labels == {"energy": 10, "forces": 0, "stress": 0}
    assert FrameSet.from_atoms([salt(0)]).num_labels == {"energy": 0, "forces": 0, "stress": 0}
    with pytest.raises(InputError, match="3 energy labels for the 10 frames of replay"):
        FrameSet.from_atoms(trajectory, name="replay", energies=[1.0] * 3)
    with pytest.raises(DataError, match=r"frame 0 of frames \(list\): forces label has shape \(2, 3\)"):
        FrameSet.from_atoms(trajectory[:1], forces=[np.zeros((2, 3))])


def test_with_energies_needs_one_each(trajectory):
    with pytest.raises(InputError, match="1 energy labels for the 10 frames of train"):
        read_frames(trajectory).with_energies([0.0])


def test_fingerprints_are_of_the_structure_alone(tmp_path, trajectory):
    write(tmp_path / "frames.extxyz", trajectory)
    marks = [fingerprint(frame) for frame in read_frames(trajectory)]
    assert [fingerprint(frame) for frame in read_frames(tmp_path / "frames.extxyz")] == marks
    assert len(set(marks)) == len(marks)
    bare = [atoms.copy() for atoms in trajectory]
    assert [fingerprint(frame) for frame in read_frames(bare, require_labels=False)] == marks
    bare[0].positions[0, 0] += 1e-3
    assert fingerprint(read_frames(bare, require_labels=False)[0]) != marks[0]
