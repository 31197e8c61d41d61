from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests import helpers


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
