from __future__ import annotations

import csv
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read, write
from matplotlib import pyplot as plt

import ase_finetune
from ase_finetune import FinetunedCalculator
from ase_finetune.cli import build_parser
from ase_finetune.data import read_pairs
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.potentials import MorsePotential
from tests import helpers
from tests import morse as world

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


def page_blocks(text: str) -> list[str]:
    """The Python code of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def checked_finetune(calculator):
    """A stand-in for finetune() that looks at its arguments and does not train."""

    def finetune(model, train=None, *, relaxations=None, valid_relaxations=0.1, output=None, **options):
        del valid_relaxations, output
        assert model == "7net-0"
        assert FinetuneConfig.from_options(options).uses_relaxations
        assert len(read_pairs(relaxations)) == 12
        assert train in (None, "frames.extxyz")
        return calculator

    return finetune


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
    for part in ("relaxations: 2 pairs", "penalty/loss", "best epoch", "trained on", "held out", "Twelve pairs"):
        assert part in out
    check_fit(tmp_path / "mine" / "zintl", "bptt+reewc", ("train_strain_median", "replay_forces_mae"))
    assert names(tmp_path) == {"mine"}


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/relaxations.md"])
def test_code_on_relaxations(page, tmp_path, monkeypatch):
    """The code of the pages runs as it stands, on pairs of ours; only the training itself is passed over."""
    for end in ("initial", "relaxed"):
        shutil.copy(EXAMPLES / "data" / f"crystal_pairs_{end}.extxyz", tmp_path / f"{end}.extxyz")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    if page == "README.md":
        text = text[text.index("## Relaxations") :].split("\n## ")[0]
    blocks = page_blocks(text)
    stand_in = checked_finetune(FinetunedCalculator("7net-0", device="cpu"))
    monkeypatch.setattr(ase_finetune, "finetune", stand_in)
    seen = {"finetune": stand_in}  # the first lines of the README import it
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, page, "exec"), seen)  # noqa: S102  # our own pages


@pytest.mark.slow
def test_finetune_reewc(tmp_path):
    out = run(tmp_path, "finetune_reewc.py", "--output", "mine/lips")
    for part in ("LiPS validation", "MPtrj retention", "force MAE", "softening slope", "best epoch"):
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


def test_slurm_script_is_valid_and_passes_its_arguments(tmp_path):
    """Run by bash with an srun that prints what it is asked to start."""
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    (tmp_path / "bin" / "activate").touch()
    answer = subprocess.run(  # noqa: S603  # our own script
        ["/bin/bash", str(ROOT / "docs" / "slurm_finetune.sh"), "my frames.extxyz", "runs/mine"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VENV": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    words = answer.stdout.splitlines()
    start = words.index("ase-finetune")
    # Every option exists: the command line parses them.
    options = build_parser().parse_args(words[start + 1 :])
    assert options.fit.train == "my frames.extxyz"
    assert options.fit.output == "runs/mine"


def test_code_on_scaling(tmp_path, monkeypatch):
    """The code of the page runs as it stands, with a small potential in the place of 7net-0."""
    monkeypatch.chdir(tmp_path)
    potential, frames = world.pretrained(), world.labelled(world.silicon(4, 1))
    write("frames.extxyz", frames)

    def small(model, *arguments, **options):
        assert model == "7net-0"
        shared = {"epochs": 1, "monitor_size": 2, "verbose": False, "device": "cpu"}
        return ase_finetune.finetune(potential, *arguments, valid=None, replay=world.oxide(6, 3), **shared, **options)

    seen = {
        "finetune": small,
        "potential": potential,
        "graphs": world.graphs(frames, potential),
        "structures": frames,
        "write": write,
        "FinetunedCalculator": lambda _, **options: FinetunedCalculator(potential, **options),
    }
    blocks = page_blocks((ROOT / "docs" / "scaling.md").read_text(encoding="utf-8"))
    assert len(blocks) == 4
    for block in sorted(blocks, key=lambda block: "connect(" not in block):  # the database has to be there first
        exec(compile(block, "scaling.md", "exec"), seen)  # noqa: S102  # our own page
    assert len(read("frames.db", ":")) == len(read("relaxed.extxyz", ":")) == 4
    assert torch.equal(*(fisher.values["shift"] > 0 for fisher in (seen["exact"], seen["close"])))
