"""Volumes, inverses and deformations of a batch of cells, in closed form.

The functions of ``torch.linalg`` ask a GPU whether they have succeeded, so that the program waits for it; these do not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def signed_volume(cell: Tensor) -> Tensor:
    """(b,) determinants of cells (b, 3, 3) in Å³: negative where the vectors are left-handed."""
    a, b, c = cell.unbind(dim=1)
    volume: Tensor = (a * torch.linalg.cross(b, c)).sum(dim=1)
    return volume


def inverse(cell: Tensor) -> Tensor:
    """(b, 3, 3) inverses of cells; not finite where a cell has no volume."""
    normals = torch.linalg.cross(cell.roll(-1, 1), cell.roll(-2, 1))
    volume = (cell[:, :1] * normals[:, :1]).sum(dim=2, keepdim=True)
    inverses: Tensor = normals.transpose(1, 2) / volume
    return inverses


def largest_stretch(matrices: Tensor) -> Tensor:
    """(b,) largest singular values of matrices B (b, 3, 3), never too small.

    Those of matrices that differ from the identity by less than 0.1 are too large by 1e-8 at most. They are roots of
    the largest eigenvalues m + 2 p cos(phi / 3) of the symmetric B^T B, with the mean m and the spread p of its
    eigenvalues and cos(phi) from its determinant.

    References
    ----------
    O. K. Smith, Commun. ACM 4, 168 (1961).
    """
    squares = matrices.transpose(1, 2) @ matrices
    mean = squares.diagonal(dim1=1, dim2=2).mean(dim=1)
    deviations = squares - mean[:, None, None] * torch.eye(3, dtype=matrices.dtype, device=matrices.device)
    spread = (deviations.square().sum(dim=(1, 2)) / 6).sqrt()
    cosine = signed_volume(deviations) / torch.where(spread > 0, 2 * spread**3, 1.0)
    largest = mean + 2 * spread * (cosine.clamp(-1, 1).acos() / 3).cos()
    # Where two eigenvalues are equal, half of the digits of their difference are lost.
    return (largest + 1e-8 * spread.sqrt()).sqrt()
