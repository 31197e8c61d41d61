"""How the coordinates of a batch of structures are laid out in rows, and sums over each structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """N rows of three coordinates that belong to b structures.

    Attributes
    ----------
    owner : (N,) int64
        Structure of each row.
    count
        Number of structures b.
    """

    owner: Tensor
    count: int

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """(b,) scalar products of two (N, 3) arrays, structure by structure."""
        return a.new_zeros(self.count).index_add(0, self.owner, (a * b).sum(dim=1))

    def norm(self, rows: Tensor) -> Tensor:
        """(b,) Euclidean norms over all rows of a structure; the gradient is 0 where they vanish."""
        return safe_sqrt(self.dot(rows, rows))

    def longest(self, rows: Tensor) -> Tensor:
        """(b,) lengths of the longest row of each structure."""
        squares = rows.square().sum(dim=1)
        largest = squares.new_zeros(self.count).scatter_reduce(0, self.owner, squares, "amax")
        return safe_sqrt(largest)

    def spread(self, values: Tensor) -> Tensor:
        """(N, 1) the structure's value on each of its rows."""
        return values[self.owner][:, None]

    def select(self, structures: Sequence[int]) -> tuple[Layout, Tensor, Tensor]:
        """The layout of some structures, the indices of their rows, and their own, both ascending."""
        kept = torch.as_tensor(sorted(structures), dtype=torch.int64, device=self.owner.device)
        place = torch.full((self.count,), -1, device=self.owner.device)
        place[kept] = torch.arange(len(kept), device=kept.device)
        rows = (place[self.owner] >= 0).nonzero().squeeze(1)
        return Layout(place[self.owner[rows]], len(kept)), rows, kept


def safe_sqrt(squares: Tensor) -> Tensor:
    """Square root whose gradient is 0, not infinite, at 0; NaN stays NaN."""
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())
