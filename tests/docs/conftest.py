"""The folder where a reader of a page works."""

from __future__ import annotations

import pytest

from ase_finetune.cli import managing
from ase_finetune.finetuning import replay_sources
from ase_finetune.potentials import registry
from ase_finetune.potentials.backends import BACKENDS
from tests.docs import small


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The files that the pages read, made once."""
    folder = tmp_path_factory.mktemp("pages")
    small.fill(folder)
    return folder


@pytest.fixture
def desk(files, tmp_path, monkeypatch):
    """A folder with these files, and quick potentials in the place of the pretrained ones."""
    small.copy(files, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_load_named", small.load_named)
    monkeypatch.setattr(replay_sources, "embedded_replay", small.few_embedded)
    monkeypatch.setitem(managing.ENDINGS, "morse", ".pth")  # as a checkpoint of the model it stands for is called
    known = dict(BACKENDS)
    yield tmp_path
    BACKENDS.clear()
    BACKENDS.update(known)
