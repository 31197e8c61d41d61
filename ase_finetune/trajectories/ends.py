"""From a differentiable optimizer to the structures that losses take."""

from __future__ import annotations

import dataclasses

from ase.filters import Filter

from ase_finetune.optimize.driver import Driver
from ase_finetune.trajectories.structures import Structures


def final_structure(optimizer: Driver) -> Structures:
    """Where an optimizer is now, with the gradient through its steps, as a batch of one.

    Parameters
    ----------
    optimizer
        Of :mod:`ase_finetune.optimize`, made with ``differentiable=True``.

    Raises
    ------
    InputError
        If it is not differentiable.
    """
    positions, cell = optimizer.positions, optimizer.cell
    atoms = optimizer.atoms.atoms if isinstance(optimizer.atoms, Filter) else optimizer.atoms
    batch = Structures.from_atoms([atoms], device=positions.device)
    return dataclasses.replace(batch, positions=positions, cell=cell[None])
