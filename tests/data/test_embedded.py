from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ase_finetune.data
from ase_finetune.data import embedded_replay
from ase_finetune.errors import InputError
from ase_finetune.graphs import neighbor_list

FOLDER = Path(ase_finetune.data.__file__).parent / "embedded"


def elements(structures):
    return {int(z) for atoms in structures for z in atoms.numbers}


def test_all_structures():
    structures = embedded_replay()
    assert len(structures) == 700
    assert len(elements(structures)) == 83
    assert max(len(atoms) for atoms in structures) <= 64
    assert [atoms.info["source_id"].startswith("wbm-") for atoms in structures] == 400 * [False] + 300 * [True]
    assert len({atoms.info["source_id"] for atoms in structures}) == 700


def test_structures_carry_no_labels_and_can_be_evaluated():
    for atoms in embedded_replay():
        assert atoms.calc is None
        assert set(atoms.info) == {"source_id"}
        assert set(atoms.arrays) == {"numbers", "positions"}
        assert atoms.pbc.all()
        assert len(neighbor_list(atoms, 3.0)[0]) == 2
        assert 3 < atoms.get_volume() / len(atoms) < 120


@pytest.mark.parametrize(("count", "covered"), [(10, 35), (20, 60), (40, 81)])
def test_any_prefix_is_diverse(count, covered):
    structures = embedded_replay(count)
    assert len(structures) == count
    assert len(elements(structures)) >= covered
    assert len({atoms.get_chemical_formula(empirical=True) for atoms in structures}) == count


def test_first_structures_are_cheap():
    assert np.mean([len(atoms) for atoms in embedded_replay(100)]) < 15


def test_copies_are_independent():
    embedded_replay(1)[0].positions[:] = 0
    assert np.abs(embedded_replay(1)[0].positions).max() > 0


@pytest.mark.parametrize("count", [0, -1, 701])
def test_impossible_counts(count):
    with pytest.raises(InputError, match=f"there are 700 embedded replay structures, asked for {count}"):
        embedded_replay(count)


def test_file_is_small_and_its_source_is_told():
    assert (FOLDER / "replay.npz").stat().st_size < 1_000_000
    text = (FOLDER / "SOURCE.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in text
    assert "s42256-023-00716-3" in text
    assert "s41524-020-00481-6" in text
