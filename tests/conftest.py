from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import helpers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data",
        default=os.environ.get("ASE_FINETUNE_DATA"),
        metavar="PATH",  # --data=PATH: pytest takes what follows a space for a folder of tests
        help="--data=PATH, folder of the research data for tests marked 'data' (or the variable ASE_FINETUNE_DATA)",
    )


@pytest.fixture(scope="session")
def data_folder(request: pytest.FixtureRequest) -> Path:
    """The research data; tests that use it carry the marker ``data`` and are skipped without it."""
    given = request.config.getoption("--data")
    if not given:
        pytest.skip("needs the research data: --data PATH or ASE_FINETUNE_DATA")
    folder = Path(given).resolve()
    if not folder.is_dir():
        pytest.fail(f"the folder of --data or ASE_FINETUNE_DATA does not exist: {folder}")
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Sum in one order: with several threads the last bits of forces differ from call to call.

    SevenNet's and MACE's gathers have atomic additions in their backward pass on a CPU.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the tests out of the user's cache; returns the folder they have instead."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_mace() -> Callable[..., Any]:
    """Factory of small native MACE modules: ``tiny_mace(seed=0, **options of the constructor)``."""
    pytest.importorskip("mace", reason="needs mace-torch")
    return helpers.build_mace


@pytest.fixture(scope="session")
def tiny_sevennet() -> Callable[..., Any]:
    """Factory of small SevenNetPotentials: ``tiny_sevennet(seed=0, **config)``."""
    pytest.importorskip("sevenn", reason="needs sevenn")
    return helpers.build_sevennet
