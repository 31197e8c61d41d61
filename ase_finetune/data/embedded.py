"""Replay structures that come with the package: small crystals over the whole periodic table.

They are structures of MPtrj, then of WBM, without labels (see ``embedded/SOURCE.md``); labels are made by the
pretrained model itself, so they serve every model.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from ase import Atoms

from ase_finetune.errors import InputError

_FILE = Path(__file__).parent / "embedded" / "replay.npz"


def embedded_replay(count: int | None = None) -> list[Atoms]:
    """The first ``count`` structures, or all of them.

    They are ordered such that the first ones already cover all elements, and every further one is
    unlike those before it: any ``count`` gives a diverse set.

    Parameters
    ----------
    count
        How many; ``None`` for all.

    Returns
    -------
    Periodic structures, with their id in MPtrj or WBM in ``info["source_id"]``.

    Raises
    ------
    InputError
        If ``count`` is not between 1 and the number there is.
    """
    structures = _load()
    if count is None:
        count = len(structures)
    if not 1 <= count <= len(structures):
        raise InputError(f"there are {len(structures)} embedded replay structures, asked for {count}")
    return [atoms.copy() for atoms in structures[:count]]


@lru_cache(maxsize=1)
def _load() -> tuple[Atoms, ...]:
    with np.load(_FILE, allow_pickle=False) as file:
        sizes, numbers, positions, cells, ids = (file[key] for key in ("sizes", "numbers", "positions", "cells", "ids"))
    ends = np.cumsum(sizes.astype(int))
    return tuple(
        Atoms(
            numbers=numbers[end - size : end].astype(int),
            positions=positions[end - size : end].astype(float),
            cell=cell.astype(float),
            pbc=True,
            info={"source_id": str(name)},
        )
        for size, end, cell, name in zip(sizes.astype(int), ends, cells, ids, strict=True)
    )
