"""Pages with the real SevenNet-0, where a small potential in its place would say too little."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write

import ase_finetune
from ase_finetune import FinetunedCalculator
from ase_finetune.data import read_pairs
from ase_finetune.finetuning import replay_sources
from ase_finetune.finetuning.config import FinetuneConfig
from tests import helpers, pretrained
from tests.docs import pages, small, test_pages

EXAMPLES = pages.ROOT / "examples"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.sevenn,
    pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn"),
]


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


@pytest.mark.parametrize("page", ["README.md", "docs/relaxations.md"])
def test_code_on_relaxations(page, tmp_path, monkeypatch):
    """The code of the pages runs as it stands, on pairs of ours; only the training itself is passed over."""
    for end in ("initial", "relaxed"):
        shutil.copy(EXAMPLES / "data" / f"crystal_pairs_{end}.extxyz", tmp_path / f"{end}.extxyz")
    monkeypatch.chdir(tmp_path)
    blocks = pages.blocks(page, "python")
    if page == "README.md":
        text = (pages.ROOT / page).read_text(encoding="utf-8")
        section = text[text.index("## Relaxations") :].split("\n## ")[0]
        blocks = [block for block in blocks if block.text in section]
    stand_in = checked_finetune(FinetunedCalculator("7net-0", device="cpu"))
    monkeypatch.setattr(ase_finetune, "finetune", stand_in)
    seen = {"finetune": stand_in}  # the first lines of the README import it
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block.text, page, "exec"), seen)  # noqa: S102  # our own pages


@pytest.fixture
def small_crystals(tmp_path, monkeypatch):
    """A reader's folder with labelled frames of a few atoms, and eight replay structures instead of all."""
    frames = [atoms for atoms in read(EXAMPLES / "data" / "mptrj_replay.extxyz", ":") if len(atoms) <= 8]
    write(tmp_path / "frames.extxyz", frames[:6])
    write(tmp_path / "test.extxyz", frames[6:8])
    write(tmp_path / "structure.extxyz", frames[8].copy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(replay_sources, "embedded_replay", small.few_embedded)
    return tmp_path


def test_start_page(small_crystals):
    """From frames to LAMMPS by the first page, with nothing but the sizes of the data set to small ones."""
    test_pages.run_page("docs/start.md")
    folder = small_crystals
    kept = {path.name for path in (folder / "runs" / "mine").iterdir()}
    assert {"model", "report.html", "history.csv", "run.json", "log.txt"} <= kept

    atoms = read("structure.extxyz")
    ours = FinetunedCalculator("runs/mine/model", device="cpu").calculate_many([atoms])[0]
    atoms.calc = pretrained.sevennet_calculator(Path("mine.pth"))
    assert atoms.get_potential_energy() == pytest.approx(ours["energy"], abs=1e-4)
    assert np.allclose(atoms.get_forces(), ours["forces"], atol=1e-4)


def test_exported_file_is_deployed_for_lammps(tmp_path):
    """The line of the recipe, with the real sevenn."""
    FinetunedCalculator("7net-0", device="cpu").export(tmp_path / "vasp.pth")
    (block,) = [b for b in pages.blocks("docs/recipes/vasp_to_lammps.md", "bash") if "sevenn_get_model" in b.text]
    program = shutil.which("sevenn_get_model", path=str(Path(sys.executable).parent))
    assert program is not None
    words = [program, *shlex.split(block.text)[1:]]
    # As the page tells for environments with mace, which has e3nn 0.4.4.
    environment = os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True)  # noqa: S603  # our page
    assert (tmp_path / "deployed_vasp.pt").is_file()
