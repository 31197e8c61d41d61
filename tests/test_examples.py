from __future__ import annotations

import csv
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from matplotlib import pyplot as plt

from ase_finetune import FinetunedCalculator
from ase_finetune.potentials import MorsePotential
from tests import helpers

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MEASURES = ("train_forces_mae", "valid_forces_mae", "replay_forces_mae")
pytestmark = [pytest.mark.sevenn, pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn")]


def run(folder: Path, name: str, *options: str) -> str:
    """Output of an example in its short form, as a user starts it."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    answer = subprocess.run(  # noqa: S603  # our own script
        [sys.executable, str(EXAMPLES / name), *options, "--short"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.fixture
def example(monkeypatch):
    """Import an example as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture(scope="module")
def morse():
    """A quick stand-in for the electrolyte (Li, P, S): what the examples do does not depend on the model."""
    return FinetunedCalculator(MorsePotential([3, 15, 16], depth=0.2, distance=2.4, cutoff=4.0), device="cpu")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def check_fit(folder: Path, method: str = "reewc", measures: tuple[str, ...] = MEASURES) -> None:
    """A complete result of fine-tuning, whose only epoch has these measures."""
    assert {"model", "history.csv", "run.json", "log.txt"} <= names(folder)
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    assert all(float(rows[0][name]) > 0 for name in measures)
    loaded = FinetunedCalculator(folder / "model", device="cpu")
    assert loaded.metadata["base_model"] == "7net-0"
    assert loaded.metadata["config"]["method"] == method


def check_md(folder: Path) -> None:
    trajectory = read(folder / "md.traj", index=":")
    assert len(trajectory) == 3
    moved = np.abs(trajectory[-1].positions - trajectory[0].positions).max()
    assert 1e-4 < moved < 0.5
    assert len((folder / "md.log").read_text().splitlines()) == 4


def check_relax(folder: Path) -> None:
    trajectory = read(folder / "relax.traj", index=":")
    assert len(trajectory) == 3
    assert trajectory[-1].get_potential_energy() < trajectory[0].get_potential_energy()
    assert "FIRE" in (folder / "relax.log").read_text()


def check_picture(folder: Path) -> None:
    picture = plt.imread(folder / "relaxation.png")
    assert min(picture.shape[:2]) > 500
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 5


def test_md_module(example, morse, tmp_path):
    temperature = example("md").main(morse, tmp_path / "deep" / "md", femtoseconds=2)
    assert 300 < temperature < 900
    check_md(tmp_path / "deep" / "md")


def test_relax_module(example, morse, tmp_path):
    assert example("relax").main(morse, tmp_path / "deep" / "relax", steps=2) is False
    check_relax(tmp_path / "deep" / "relax")


def test_differentiable_relaxation_module(example, tmp_path, capsys):
    # It changes the parameters of the potential it is given.
    potential = MorsePotential([4, 11, 15], depth=0.2, distance=2.4, cutoff=4.0).double()
    morse = FinetunedCalculator(potential, device="cpu")
    assert example("differentiable_relaxation").main(morse, tmp_path / "deep" / "picture", steps=5) > 0
    check_picture(tmp_path / "deep" / "picture")
    gained, expected = re.search(r"lower by ([-\d.]+), expected ([-\d.]+)", capsys.readouterr().out).groups()
    assert float(gained) == pytest.approx(float(expected), rel=0.1)


def test_demo_never_takes_a_folder_that_exists(example, tmp_path):
    free_folder = example("demo").free_folder
    assert free_folder(tmp_path) == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert free_folder(tmp_path) == tmp_path / "demo-3"


def test_md(tmp_path):
    assert "MD: 2 fs at 600 K" in run(tmp_path, "md.py")
    check_md(tmp_path / "runs" / "md")
    assert names(tmp_path) == {"runs"}


def test_relax(tmp_path):
    assert "FIRE: 2 steps" in run(tmp_path, "relax.py", "7net-0")
    check_relax(tmp_path / "runs" / "relax")
    assert names(tmp_path) == {"runs"}


@pytest.mark.slow
def test_differentiable_relaxation(tmp_path):
    out = run(tmp_path, "differentiable_relaxation.py", "--output", "mine")
    assert "3 steps: RMSD 0.409" in out
    assert "edge_embedding" in out
    check_picture(tmp_path / "mine")
    assert names(tmp_path) == {"mine"}


@pytest.mark.slow
def test_bptt_relaxation(tmp_path):
    out = run(tmp_path, "bptt_relaxation.py", "--output", "mine/zintl")
    for part in ("relaxations: 2 pairs", "penalty/loss", "kept: epoch", "trained on", "held out", "Twelve pairs"):
        assert part in out
    check_fit(tmp_path / "mine" / "zintl", "bptt+reewc", ("train_strain_median", "replay_forces_mae"))
    assert names(tmp_path) == {"mine"}


@pytest.mark.slow
def test_finetune_reewc(tmp_path):
    out = run(tmp_path, "finetune_reewc.py", "--output", "mine/lips")
    for part in ("LiPS validation", "MPtrj retention", "force MAE", "softening slope", "kept: epoch"):
        assert part in out
    check_fit(tmp_path / "mine" / "lips")
    assert names(tmp_path) == {"mine"}


@pytest.mark.slow
def test_demo(tmp_path):
    out = run(tmp_path, "demo.py")
    folder = tmp_path / "runs" / "demo"
    check_fit(folder)
    check_md(folder)
    check_relax(folder)
    assert 'FinetunedCalculator("runs/demo/model")' in out
    assert names(tmp_path / "runs") == {"demo"}
