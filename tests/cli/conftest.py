from __future__ import annotations

import pytest
from ase.io import write

from ase_finetune.potentials import save_potential
from tests import morse


@pytest.fixture
def folder(tmp_path):
    """A saved potential and files of frames."""
    save_potential(morse.pretrained(), tmp_path / "model")
    write(tmp_path / "train.extxyz", morse.labelled(morse.silicon(6, 1)))
    write(tmp_path / "valid.extxyz", morse.labelled(morse.silicon(3, 2)))
    write(tmp_path / "replay.extxyz", morse.oxide(4, 3))
    return tmp_path
