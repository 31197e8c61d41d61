"""Variable cells: the logarithm of the deformation as coordinates, as in ASE's FrechetCellFilter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase.filters import FrechetCellFilter
from torch import Tensor

from ase_finetune.errors import InputError


@dataclass(frozen=True)
class CellOptions:
    """Which deformations of the cell are relaxed, with the options of :class:`ase.filters.FrechetCellFilter`.

    Parameters
    ----------
    mask
        Six booleans in Voigt order (xx, yy, zz, yz, xz, xy): the strains that may change.
    hydrostatic_strain
        Only the volume changes, not the shape.
    constant_volume
        Only the shape changes.
    scalar_pressure
        External pressure in eV/Å³.
    exp_cell_factor
        Scale of the cell's coordinates; the number of atoms when ``None``.

    Notes
    -----
    The mask acts on the logarithm of the deformation, so that forces are the exact gradient of the energy.
    ASE cuts the deformation itself; both are the same for masks that free both axes of every shear they free,
    and with two shears the third.
    """

    mask: Sequence[bool] = (True,) * 6
    hydrostatic_strain: bool = False
    constant_volume: bool = False
    scalar_pressure: float = 0.0
    exp_cell_factor: float | None = None

    def __post_init__(self) -> None:
        if len(self.mask) != 6:
            raise InputError(f"mask takes six booleans (xx, yy, zz, yz, xz, xy), got {self.mask!r}")
        if self.hydrostatic_strain and (self.constant_volume or not all(self.mask)):
            raise InputError("hydrostatic_strain goes neither with constant_volume nor with a mask")
        if self.constant_volume and not all(self.mask[:3]):
            raise InputError("constant_volume needs a mask that frees xx, yy and zz")
        if not np.isfinite(self.scalar_pressure):
            raise InputError(f"scalar_pressure is not finite: {self.scalar_pressure}")
        object.__setattr__(self, "mask", tuple(bool(item) for item in self.mask))

    @classmethod
    def from_filter(cls, filtered: FrechetCellFilter) -> CellOptions:
        """The options of ``filtered``, a :class:`ase.filters.FrechetCellFilter`."""
        full = np.asarray(filtered.mask, dtype=bool)
        return cls(
            mask=[bool(full[a, b]) for a, b in _VOIGT],
            hydrostatic_strain=bool(filtered.hydrostatic_strain),
            constant_volume=bool(filtered.constant_volume),
            scalar_pressure=float(filtered.scalar_pressure),
            exp_cell_factor=float(filtered.exp_cell_factor),
        )

    def project(self, logarithm: Tensor) -> Tensor:
        """The part of (b, 3, 3) logarithms of a deformation, or of forces on them, that may change.

        Parameters
        ----------
        logarithm : (b, 3, 3)
            Of the deformations, or forces on them in eV.
        """
        identity = torch.eye(3, dtype=logarithm.dtype, device=logarithm.device)
        third = logarithm.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None] / 3 * identity
        if self.hydrostatic_strain:
            return third
        kept = logarithm - third if self.constant_volume else logarithm
        return kept if all(self.mask) else kept * self._full_mask(kept)

    def _full_mask(self, like: Tensor) -> Tensor:
        mask = like.new_zeros((3, 3))
        for (a, b), free in zip(_VOIGT, self.mask, strict=True):
            mask[a, b] = mask[b, a] = float(free)
        return mask


_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def full_stress(voigt: Tensor) -> Tensor:
    """(b, 3, 3) tensors of (b, 6) stresses in Voigt order."""
    xx, yy, zz, yz, xz, xy = voigt.unbind(dim=1)
    # A list of indices would be sent to a GPU.
    return torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=1).view(-1, 3, 3)


def exponential(matrices: Tensor) -> Tensor:
    """Exponentials of (b, n, n) matrices to rounding, differentiable.

    Of one matrix alone with a norm between 3e-4 and 5e-2, torch 2.13 gives it on a CPU with errors of up to 1e-10,
    and its derivative with 4e-9; of two it is exact. A structure would relax otherwise alone than with others.
    """
    if matrices.device.type != "cpu":
        return series_exponential(matrices)
    if len(matrices) != 1:
        several: Tensor = torch.matrix_exp(matrices)
        return several
    twice: Tensor = torch.matrix_exp(matrices.expand(2, -1, -1))
    return twice[:1]


def series_exponential(matrices: Tensor) -> Tensor:
    """Exponentials of (b, n, n) matrices by a series of fixed length, to rounding up to norms of 3, 1e-12 up to 10.

    torch's own reads the norms back from a GPU, at every call.
    """
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    scaled, result = matrices / 2**_SQUARINGS, identity.expand_as(matrices)
    for k in range(_TERMS, 0, -1):
        result = identity + scaled @ result / k
    for _ in range(_SQUARINGS):
        result = result @ result
    return result


_TERMS, _SQUARINGS = 12, 4


def logarithmic_force(logarithm: Tensor, deformation: Tensor, virial: Tensor) -> Tensor:
    """-dE/dL (b, 3, 3) for the deformation F = exp(L) and the virial -V sigma.

    With G = virial F^-T = -dE/dF this is the adjoint of the derivative of exp at L applied to G, which is
    the derivative of exp at L^T in the direction G: the upper right block of the exponential of
    [[L^T, G], [0, L^T]].

    References
    ----------
    A. H. Al-Mohy, N. J. Higham, SIAM J. Matrix Anal. Appl. 30, 1639 (2009).
    """
    # As solve(), which would make the program wait for a GPU to say that no matrix is singular: none is.
    gradient: Tensor = torch.linalg.solve_ex(deformation.transpose(1, 2), virial, left=False)[0]
    transposed = logarithm.transpose(1, 2)
    upper = torch.cat([transposed, gradient], dim=2)
    lower = torch.cat([torch.zeros_like(transposed), transposed], dim=2)
    return exponential(torch.cat([upper, lower], dim=1))[:, :3, 3:]


def cell_options(cell: bool | CellOptions | dict[str, Any]) -> CellOptions | None:
    """``None`` for a fixed cell; ``True`` stands for the defaults."""
    if isinstance(cell, dict):
        return CellOptions(**cell)
    if isinstance(cell, bool):
        return CellOptions() if cell else None
    return cell
