from __future__ import annotations

import sys

import pytest
from ase.io import read, write

from ase_finetune import FinetunedCalculator
from ase_finetune.cli import main
from ase_finetune.optimize import relax
from tests import morse
from tests.cli.running import program


def run(folder, *options, structures=("train.extxyz",)):
    files = [str(folder / name) for name in structures]
    places = ["--output", str(folder / "out.extxyz"), "--device", "cpu"]
    return main(["relax", str(folder / "model"), *files, *places, *options])


def table(text):
    return [line.split() for line in text.splitlines()[2:]]


def test_it_is_relax(folder, capsys):
    """The same structures, energies and forces as from Python, in the order given."""
    names = ("valid.extxyz@1", "replay.extxyz", "train.extxyz@:2")
    assert run(folder, "--fmax", "0.2", "--cell", "--optimizer", "lbfgs", structures=names) == 0
    start = [
        *read(folder / "valid.extxyz", "1:2"),
        *read(folder / "replay.extxyz", ":"),
        *read(folder / "train.extxyz", ":2"),
    ]
    expected = relax(start, FinetunedCalculator(folder / "model", device="cpu"), "lbfgs", cell=True, fmax=0.2)
    found = read(folder / "out.extxyz", ":")
    rows = table(capsys.readouterr().out)
    assert len(found) == len(rows) == len(expected) == 7
    for k, (atoms, result, row, before) in enumerate(zip(found, expected, rows, start, strict=True)):
        assert atoms.positions == pytest.approx(result.atoms.positions, abs=1e-7)
        assert atoms.cell[:] == pytest.approx(result.atoms.cell[:], abs=1e-7)
        assert atoms.get_potential_energy() == pytest.approx(result.atoms.get_potential_energy(), abs=1e-6)
        assert atoms.get_forces() == pytest.approx(result.atoms.get_forces(), abs=1e-6)
        assert (int(row[0]), row[1]) == (k, before.get_chemical_formula(empirical=True))
        assert [int(row[2]), int(row[3])] == [8, result.steps]
        assert float(row[4]) == pytest.approx(result.fmax, rel=1e-2)
        assert float(row[5]) == pytest.approx(result.atoms.get_potential_energy() / 8, abs=1e-4)
        change = 100 * (result.atoms.get_volume() / before.get_volume() - 1)
        assert float(row[6]) == pytest.approx(change, abs=0.006)
        assert row[7:] == ["converged"]


def test_not_all_converge(folder, capsys):
    assert run(folder, "--steps", "1") == 3
    told = capsys.readouterr()
    assert told.out.count("not converged") == 6
    assert told.err.endswith(f"0 of 6 converged; written to {folder / 'out.extxyz'}\n")
    assert len(read(folder / "out.extxyz", ":")) == 6


def test_one_that_explodes_does_not_stop_the_others(folder, capsys):
    far = morse.silicon(1, 9)[0]
    far.set_cell(far.cell * 0.3, scale_atoms=True)
    write(folder / "mixed.extxyz", [far, *read(folder / "train.extxyz", ":1")])
    assert run(folder, "--cell", "--fmax", "0.2", structures=("mixed.extxyz",)) == 3
    first, second = capsys.readouterr().out.splitlines()[2:]
    assert "failed: " in first
    assert second.endswith("converged")
    assert len(read(folder / "out.extxyz", ":")) == 2


def test_existing_files_are_kept(folder, capsys):
    (folder / "out.extxyz").write_text("precious")
    assert run(folder) == 1
    assert "exists; choose another name or give --overwrite" in capsys.readouterr().err
    assert (folder / "out.extxyz").read_text() == "precious"
    assert run(folder, "--overwrite", "--fmax", "0.3", "--cell") == 0
    assert len(read(folder / "out.extxyz", ":")) == 6
    assert [path.name for path in folder.iterdir() if ".part" in path.name] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.abinit-of-nobody", "ASE knows no format of this name"),
        ("none/out.extxyz", "there is no folder"),
        ("POSCAR", "holds one structure, and these are 6"),
        ("OUTCAR", "ASE cannot write the format"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(folder, capsys, monkeypatch, name, message):
    monkeypatch.setattr("ase_finetune.cli.relaxing.relax", None)
    words = ["relax", str(folder / "model"), str(folder / "train.extxyz"), "--output", str(folder / name)]
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_one_structure_in_any_format(folder):
    words = ["relax", str(folder / "model"), str(folder / "train.extxyz@0"), "--fmax", "1"]
    assert main([*words, "--output", str(folder / "POSCAR")]) == 0
    assert len(read(folder / "POSCAR")) == 8
    assert main([*words, "--output", str(folder / "zipped.extxyz.gz")]) == 0
    assert len(read(folder / "zipped.extxyz.gz")) == 8


@pytest.mark.slow
def test_two_processes(folder):
    """The same table and file as of one; one process talks."""
    words = ["relax", "model", "train.extxyz", "--fmax", "0.2", "--device", "cpu", "--cell", "-q"]
    alone = program([*words, "--output", "alone.extxyz"], folder)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together = program([*words, "--output", "together.extxyz"], folder, [*launcher, "-m", "ase_finetune"])
    assert (alone.returncode, together.returncode) == (0, 0)
    assert together.stdout.endswith(alone.stdout)
    for one, two in zip(read(folder / "alone.extxyz", ":"), read(folder / "together.extxyz", ":"), strict=True):
        assert two.positions == pytest.approx(one.positions, abs=1e-6)
