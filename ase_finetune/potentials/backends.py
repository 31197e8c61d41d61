"""The backends by name."""

from __future__ import annotations

import importlib

from ase_finetune.errors import CheckpointError
from ase_finetune.potentials.base import Potential

#: Where the class of each backend is found; a new backend is one line here.
BACKENDS = {
    "mace": "ase_finetune.potentials.mace:MACEPotential",
    "morse": "ase_finetune.potentials.pair:MorsePotential",
    "sevenn": "ase_finetune.potentials.sevennet:SevenNetPotential",
}


def backend_class(name: str) -> type[Potential]:
    """The potential class of a backend, imported on first use.

    Raises
    ------
    CheckpointError
        If no backend has this name.
    """
    if name not in BACKENDS:
        raise CheckpointError(f"unknown backend {name!r}; there are {', '.join(sorted(BACKENDS))}")
    module, _, attribute = BACKENDS[name].partition(":")
    found: type[Potential] = getattr(importlib.import_module(module), attribute)
    return found
