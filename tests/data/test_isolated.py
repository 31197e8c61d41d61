"""Isolated atoms are references, and no part of a training or validation set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write

from ase_finetune.data import (
    FrameSet,
    describe_isolated,
    fit_reference,
    is_isolated,
    isolated_energies,
    leave_out_isolated,
    read_frames,
    split_frames,
)
from ase_finetune.errors import DataError
from tests.data.conftest import labelled

CUTOFF = 5.0


def lone(symbol: str, energy: float | None, **info: str) -> Atoms:
    atoms = Atoms(symbol, cell=[10.0] * 3, info=info)
    if energy is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


@pytest.fixture
def mixed(trajectory) -> list[Atoms]:
    """Ten frames with isolated atoms before, between and after them."""
    atoms = lone("Na", -0.3, config_type="IsolatedAtom"), lone("Cl", -0.2), lone("Na", -0.5)
    return [atoms[0], *trajectory[:5], atoms[1], *trajectory[5:], atoms[2]]


@pytest.mark.parametrize(
    ("atoms", "isolated"),
    [
        (lone("H", None), True),
        (Atoms("H", cell=[100.0] * 3, pbc=True), True),
        (bulk("Fe", "bcc", a=2.87), False),
        (Atoms("H", cell=[4.9, 20, 20], pbc=[True, False, False]), False),
        (Atoms("H", cell=[5.1, 20, 20], pbc=[True, False, False]), True),
        (Atoms("H2", positions=[(0, 0, 0), (0, 0, 8)]), False),
        *(
            (Atoms("H", cell=[4.0] * 3, pbc=True, info={"config_type": name}), True)
            for name in ("IsolatedAtom", "isolated_atom", "ISOLATED ATOM")
        ),
        (Atoms("H", cell=[4.0] * 3, pbc=True, info={"config_type": "bulk"}), False),
        (Atoms("H2", positions=[(0, 0, 0), (0, 0, 0.7)], info={"config_type": "IsolatedAtom"}), False),
    ],
)
def test_what_is_an_isolated_atom(atoms, isolated):
    assert is_isolated(atoms, CUTOFF) == isolated


def test_they_are_left_out_and_kept(mixed, trajectory):
    rest, isolated = leave_out_isolated(read_frames(mixed), CUTOFF)
    assert rest.digest() == read_frames(trajectory).digest()
    assert [frame.index for frame in isolated] == [0, 6, 12]
    assert isolated_energies([isolated]) == {"Na": -0.5, "Cl": -0.2}
    text = "train: 3 isolated atoms are left out of training, validation and reference energies: "
    assert describe_isolated(isolated) == f"{text}Na -0.5000 eV, Cl -0.2000 eV"


def test_without_any_the_set_is_the_same(trajectory):
    frames = read_frames([*trajectory, labelled(20, "Fe8"), bulk("Fe", "bcc", a=2.87)])
    rest, isolated = leave_out_isolated(frames, CUTOFF)
    assert rest is frames
    assert len(isolated) == 0
    assert isolated_energies([isolated]) == {}


def test_an_atom_without_an_energy_is_no_reference(trajectory):
    _, isolated = leave_out_isolated(read_frames([*trajectory, lone("Xe", None)]), CUTOFF)
    assert isolated_energies([isolated]) == {}
    assert describe_isolated(isolated) == (
        "train: 1 isolated atom is left out of training, validation and reference energies: Xe"
    )


def test_nothing_else_is_an_error():
    atoms = FrameSet.from_atoms([lone("H", -1.0), lone("O", -2.0)], name="valid")
    with pytest.raises(DataError, match=r"^valid: all 2 frames are isolated atoms \(H, O\).* within 5 Å$"):
        leave_out_isolated(atoms, CUTOFF)


@pytest.mark.parametrize("suffix", ["db", "extxyz"])
def test_from_files(mixed, tmp_path, suffix):
    path = tmp_path / f"frames.{suffix}"
    if suffix == "extxyz":
        write(path, mixed)
    else:
        with connect(path) as db:
            for atoms in mixed:
                db.write(atoms, **atoms.info)
    frames = read_frames(path, stream=suffix == "db")
    rest, isolated = leave_out_isolated(frames, CUTOFF)
    assert rest.is_streamed == isolated.is_streamed == (suffix == "db")
    assert [frame.index for frame in isolated] == [0, 6, 12]
    assert isolated_energies([isolated]) == pytest.approx({"Na": -0.5, "Cl": -0.2})
    assert set(rest.sizes) == {8}


def test_reference_energies_are_those_of_the_material(mixed):
    rest, _ = leave_out_isolated(read_frames(mixed), CUTOFF)
    offsets = fit_reference(rest, [0.0] * len(rest))
    assert offsets.rank == 1
    assert offsets.offsets[11] == pytest.approx(np.mean([frame.energy for frame in rest]) / 8)


def test_atoms_without_the_key_leave_trajectories_together(trajectory):
    for i, atoms in enumerate(trajectory):
        atoms.info["run"] = i % 2
    rest, _ = leave_out_isolated(read_frames([lone("Na", -0.3), *trajectory, lone("Cl", -0.2)]), CUTOFF)
    assert rest.groups == [f"run={i % 2}" for i in range(10)]


@pytest.mark.data
def test_a_real_file_is_judged_by_its_liquid(data_folder: Path):
    frames, isolated = leave_out_isolated(read_frames(data_folder / "licl_cocl2_periodic.xyz"), CUTOFF)
    assert (len(frames), len(isolated)) == (44, 6)
    assert isolated_energies([isolated])["H"] == pytest.approx(-1.1172191)
    assert [split_frames(frames, 0.1, seed=seed).valid.sizes for seed in range(4)] == [[170] * 4] * 4
