from __future__ import annotations

import numpy as np
import pytest
import torch

from ase_finetune.graphs.cells import inverse, largest_stretch, signed_volume


def random_cells(seed: int = 0) -> torch.Tensor:
    """Left- and right-handed, skewed, some flat."""
    cells = np.random.default_rng(seed).normal(size=(200, 3, 3)) * 6.0
    cells[::4, 2] = 0.02 * cells[::4, 2] + 0.5 * cells[::4, 0]
    return torch.tensor(cells)


def test_volumes_and_inverses_are_those_of_linear_algebra():
    cells = random_cells()
    torch.testing.assert_close(signed_volume(cells), torch.linalg.det(cells), rtol=1e-10, atol=1e-10)
    identity = torch.eye(3, dtype=cells.dtype).expand(len(cells), 3, 3)
    torch.testing.assert_close(inverse(cells) @ cells, identity, rtol=0, atol=1e-9)
    assert not inverse(torch.zeros(1, 3, 3)).isfinite().any()


@pytest.mark.parametrize("kind", ["any", "volume", "axis", "plane", "none"])
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e-3, 0.03, 0.09, 3.0])
def test_the_largest_stretch_is_never_too_small(kind, size):
    rng = np.random.default_rng(1)
    change = rng.normal(size=(500, 3, 3)) if kind == "any" else np.zeros((500, 3, 3))
    if kind not in ("any", "none"):
        which = {"volume": [0, 0, 0], "axis": [0, 0, 1], "plane": [0, 1, 1]}[kind]
        change[:, [0, 1, 2], [0, 1, 2]] = rng.normal(size=(500, 2))[:, which]
    change *= size / max(1.0, np.abs(change).max())
    turn = np.linalg.qr(rng.normal(size=(500, 3, 3)))[0]
    matrices = torch.tensor(turn @ (np.eye(3) + change))
    found, exact = largest_stretch(matrices), torch.linalg.svdvals(matrices)[:, 0]
    assert (found >= exact * (1 - 1e-15)).all()
    assert (found <= exact * (1 + (1e-8 if size < 0.1 else 1e-6))).all()


def test_no_deformation_stretches_by_exactly_1():
    assert (largest_stretch(torch.eye(3, dtype=torch.float64)[None]) == 1.0).all()
