"""ASE constraints that relaxations in tensors honour."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian

from ase_finetune.errors import InputError


def free_components(atoms: Atoms, *, cell: bool = False) -> npt.NDArray[np.bool_]:
    """(n, 3) booleans: True where a coordinate may change.

    Parameters
    ----------
    atoms
        With its constraints.
    cell
        Whether the cell relaxes too.

    Raises
    ------
    InputError
        If there is a constraint other than ``FixAtoms`` and ``FixCartesian``, or ``FixCartesian`` in a
        cell that relaxes, where a fixed Cartesian component has no meaning that ASE keeps to either.
    """
    free = np.ones((len(atoms), 3), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            free[constraint.index] = False
        elif isinstance(constraint, FixCartesian):
            if cell:
                raise InputError("FixCartesian cannot be combined with a cell that relaxes; use FixAtoms")
            free[constraint.index] &= ~np.asarray(constraint.mask, dtype=bool)
        else:
            raise InputError(
                f"the constraint {type(constraint).__name__} is not supported in a batched or differentiable "
                "relaxation; FixAtoms and FixCartesian are"
            )
    return free
