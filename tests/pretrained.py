"""Pretrained models for the tests that need real weights: loaded once, never downloaded."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from ase_finetune.errors import BackendNotInstalledError, ModelNotAvailableError
from ase_finetune.potentials import Potential, load_potential
from ase_finetune.potentials.imports import import_backend
from ase_finetune.potentials.registry import locate_model


def path_or_skip(name: str) -> Path:
    """The model's file, or a skipped test where it is not on this machine."""
    try:
        return locate_model(name, download=False)
    except (BackendNotInstalledError, ModelNotAvailableError) as error:
        pytest.skip(str(error))


@functools.cache
def _load(name: str, dtype: torch.dtype) -> Potential:
    return load_potential(name, dtype=dtype)[0]


def pretrained(name: str = "7net-0", dtype: torch.dtype = torch.float32) -> Potential:
    """A model shared by all tests: do not change its parameters."""
    path_or_skip(name)
    return _load(name, dtype)


def sevennet_calculator(path: Path) -> Any:
    """sevenn's own calculator of a checkpoint, without the warnings of the code below it."""
    module = import_backend("sevenn.calculator", "sevenn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return module.SevenNetCalculator(str(path), device="cpu")
