"""Files written by the first version: they load for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ase.build import bulk

from ase_finetune.continual import load_fisher
from ase_finetune.graphs import AtomGraph
from ase_finetune.losses import Loss
from ase_finetune.potentials import load_potential, save_potential
from ase_finetune.potentials.formats import CONFIG_FILE, FORMAT_VERSION
from ase_finetune.potentials.storage import potential_hash
from tests import helpers

FOLDER = Path(__file__).parent / "format-1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())

needs_mace = pytest.mark.skipif(not helpers.HAS_MACE, reason="needs mace-torch")
needs_sevenn = pytest.mark.skipif(not helpers.HAS_SEVENN, reason="needs sevenn")


def energy(potential) -> float:
    atoms = bulk("Si", cubic=True)
    atoms.positions[0] += 0.1
    return float(potential.energies(AtomGraph.from_atoms(atoms, potential.cutoff)).detach().sum())


@pytest.mark.parametrize(
    "name",
    [
        "morse",
        pytest.param("sevennet", marks=[pytest.mark.sevenn, needs_sevenn]),
        pytest.param("mace", marks=[pytest.mark.mace, needs_mace]),
    ],
)
def test_potential(name, tmp_path):
    potential, metadata = load_potential(FOLDER / name)
    assert metadata["model"] == ("tests.morse" if name == "morse" else "tiny")
    assert potential_hash(potential) == EXPECTED[name]["hash"]
    assert energy(potential) == pytest.approx(EXPECTED[name]["energy"], abs=1e-5)
    save_potential(potential, tmp_path / "new", metadata=metadata)
    again, same = load_potential(tmp_path / "new")
    assert same == metadata
    assert potential_hash(again) == EXPECTED[name]["hash"]


def test_overwritten_by_the_present_version(tmp_path):
    shutil.copytree(FOLDER / "morse", tmp_path / "model")
    potential, metadata = load_potential(tmp_path / "model")
    save_potential(potential, tmp_path / "model", metadata=metadata, overwrite=True)
    assert json.loads((tmp_path / "model" / CONFIG_FILE).read_text())["format_version"] == FORMAT_VERSION
    assert not (tmp_path / "model" / "weights.safetensors").exists()
    assert potential_hash(load_potential(tmp_path / "model")[0]) == EXPECTED["morse"]["hash"]


def test_fisher():
    fisher = load_fisher(FOLDER / "fisher.safetensors", model_hash=EXPECTED["morse"]["hash"], loss=Loss("l1"))
    assert fisher.metadata["kind"] == "empirical"
    assert {name: value.tolist() for name, value in fisher.values.items()} == EXPECTED["fisher"]
