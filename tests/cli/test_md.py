from __future__ import annotations

import numpy as np
import pytest
from ase.io import read

from ase_finetune import FinetunedCalculator
from ase_finetune.analysis import run_md
from ase_finetune.cli import main
from ase_finetune.cli.replacing import Replacing


def run(folder, *options):
    words = ["md", str(folder / "model"), str(folder / "train.extxyz@0"), "--output", str(folder / "run.traj")]
    return main([*words, "--device", "cpu", *options])


def rows(text):
    return np.array([[float(word) for word in line.split()] for line in text.splitlines()[1:] if "drift" not in line])


def test_it_is_run_md(folder, capsys):
    options = ["--ensemble", "nve", "--picoseconds", "0.05", "--timestep", "0.5", "--temperature", "200", "--seed", "4"]
    assert run(folder, *options) == 0
    told = capsys.readouterr()
    expected = run_md(
        read(folder / "train.extxyz", 0),
        FinetunedCalculator(folder / "model", device="cpu"),
        temperature=200,
        picoseconds=0.05,
        timestep=0.5,
        ensemble="nve",
        seed=4,
    )
    found = rows(told.out)
    assert found[:, 0] == pytest.approx(expected.times, abs=5e-4)
    assert found[:, 1] == pytest.approx(expected.temperatures, abs=0.06)
    assert found[:, 2] == pytest.approx(expected.potential_energies, abs=6e-5)
    assert found[:, 3] == pytest.approx(expected.total_energies, abs=6e-5)
    assert found[:, 4] == pytest.approx(expected.pressures, abs=6e-4)
    assert f"drift of the total energy: {expected.drift:+.3g} meV/atom/ps" in told.out
    assert "Si8, 8 atoms: nve, 0.05 ps at 200 K" in told.err
    frames = read(folder / "run.traj", ":")
    assert len(frames) == len(expected.times)
    assert frames[-1].positions == pytest.approx(expected.atoms.positions, abs=1e-9)


def test_long_runs_are_told_in_some_lines(folder, capsys):
    assert run(folder, "--picoseconds", "0.4", "--interval", "1", "--repeat", "1", "1", "2", "-q") == 0
    found = rows(capsys.readouterr().out)
    assert 45 <= len(found) <= 60
    assert found[[0, -1], 0] == pytest.approx([0, 0.4])
    frames = read(folder / "run.traj", ":")
    assert (len(frames), len(frames[0])) == (401, 16)


def test_existing_files_are_kept(folder, capsys):
    (folder / "run.traj").write_text("precious")
    assert run(folder) == 1
    assert "exists; choose another name or give --overwrite" in capsys.readouterr().err
    assert (folder / "run.traj").read_text() == "precious"
    assert run(folder, "--overwrite", "--picoseconds", "0.01") == 0
    assert len(read(folder / "run.traj", ":")) == 2


def test_one_structure(folder, capsys):
    words = ["md", str(folder / "model"), str(folder / "train.extxyz"), "--output", str(folder / "run.traj")]
    assert main(words) == 1
    assert "holds 6 structures; choose one, such as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pressure", "1"], "has no effect on --ensemble nvt; use 'npt'"),
        (["--timestep", "0"], "timestep must be positive"),
        (["--repeat", "0", "1", "1"], "repeat"),
    ],
)
def test_arguments_that_cannot_be_used(folder, capsys, options, message):
    assert run(folder, *options) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("ase-finetune: error: ")
    assert message in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "seed must not be negative"),
        (["--timestep", "0"], "timestep must be positive"),
        (["--ensemble", "npt", "--temperature", "0"], "temperature must be positive"),
    ],
)
def test_a_start_that_fails_leaves_the_earlier_file(folder, capsys, options, message):
    (folder / "run.traj").write_text("precious")
    assert run(folder, "--overwrite", *options) == 1
    assert message in capsys.readouterr().err
    assert (folder / "run.traj").read_text() == "precious"
    assert [path.name for path in folder.iterdir() if ".part" in path.name] == []


@pytest.mark.parametrize("name", ["o.traj", "o.extxyz", "o.db"])
def test_replacing(folder, name):
    """All frames of the new run and none of the old one, in each format; nothing is left beside them."""
    words = ["md", str(folder / "model"), str(folder / "train.extxyz@0"), "--output", str(folder / name)]
    assert main([*words, "--picoseconds", "0.05", "--device", "cpu"]) == 0
    assert main([*words, "--picoseconds", "0.03", "--device", "cpu", "--overwrite"]) == 0
    assert len(read(folder / name, ":")) == 4
    assert [path.name for path in folder.iterdir() if ".part" in path.name] == []


@pytest.mark.parametrize("links", [True, False])
def test_the_frames_before_an_explosion_replace_the_earlier_file(folder, monkeypatch, links):
    def no_links(*_):
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr("ase_finetune.cli.replacing.os.link", no_links)
    target = folder / "o.extxyz"
    target.write_text("old")

    def explode():
        with Replacing(target) as file:
            assert target.read_text() == "old"
            file.path.write_text("one")
            file.frame_is_written()
            assert target.read_text() == ("one" if links else "old")
            with file.path.open("a") as stream:
                stream.write(" two")
            file.frame_is_written()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        explode()
    assert target.read_text() == "one two"
    assert [path.name for path in folder.iterdir() if ".part" in path.name] == []


def test_endings_are_checked_first(folder, capsys):
    words = ["md", "no-model", str(folder / "train.extxyz@0"), "--output", str(folder / "run.dump")]
    assert main(words) == 1
    assert "must end in one of .traj, .extxyz, .xyz, .db" in capsys.readouterr().err
