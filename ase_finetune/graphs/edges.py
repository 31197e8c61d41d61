"""Edges as a potential gets them: all of them within its cutoff, or marked, and side by side by their receiver."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

#: Edges per group of slots, which is one matrix product of a convolution. Measured on a CPU: 4 and more are alike, and
#: each atom wastes up to one group less one.
GROUP = 4


@dataclass(frozen=True)
class Edges:
    """Directed edges i -> j, the vectors along them, and which of them count.

    They may lie in slots: groups of :data:`GROUP` slots share their atom i, groups are in ascending order of it, and
    where an atom has no edge left for its last group the slots are empty. Sums over the edges of an atom are then
    sums over its groups, which a matrix product can do.

    Attributes
    ----------
    index : (2, e)
        Atoms i and j of each edge; both are the atom of the group where a slot is empty.
    vectors : (e, 3)
        Å, from i to j.
    cutoff
        Å.
    inside : (e, 1) or None
        1 where an edge is within the cutoff, 0 where it is longer or a slot is empty, in the type of the vectors.
        Edges in slots always have it; else it is ``None`` and all count. Vectors where it is 0 are finite, longer than
        the cutoff, and mean nothing.
    """

    index: Tensor
    vectors: Tensor
    cutoff: float
    inside: Tensor | None = None

    @classmethod
    def masked(cls, index: Tensor, vectors: Tensor, cutoff: float, inside: Tensor) -> Edges:
        """Edges in slots, of which some count.

        Parameters
        ----------
        index : (2, e)
            Atoms of each edge.
        vectors : (e, 3)
            Å; anything for edges that do not count.
        cutoff
            Å.
        inside : (e,) bool
            Whether an edge counts.
        """
        # Anything finite beyond every cutoff: what is made of it is multiplied by zero.
        vectors = torch.where(inside[:, None], vectors, cutoff + _FAR)
        return cls(index, vectors, cutoff, inside[:, None].to(vectors.dtype))

    def mask(self, values: Tensor) -> Tensor:
        """The values (e, ...) of edges that count, and zero for those that do not.

        Parameters
        ----------
        values : (e, ...)
            One row for each edge, finite everywhere.
        """
        return values if self.inside is None else values * self.inside.view(-1, *(1,) * (values.ndim - 1))

    def with_vectors(self, vectors: Tensor) -> Edges:
        """The same edges with other ``vectors``."""
        return dataclasses.replace(self, vectors=vectors)

    def in_slots(self, num_atoms: int) -> Edges:
        """The same edges in slots; those that lie in slots as they are.

        Parameters
        ----------
        num_atoms
            Of the whole graph.
        """
        if self.inside is not None or not self.index.shape[1]:
            return self
        order, filled = by_receiver(self.index[0], num_atoms)
        index = in_order(self.index, order, filled)
        return Edges.masked(index, self.vectors.index_select(0, order), self.cutoff, filled)


# Å beyond the cutoff, where all functions of a distance are finite, and zero where they have a cutoff of their own.
_FAR = 10.0


def in_order(index: Tensor, order: Tensor, filled: Tensor) -> Tensor:
    """(2, s) atoms of the edges ``index`` (2, e) in slots, as :func:`by_receiver` gives their order."""
    receivers = index[0].index_select(0, order[::GROUP]).repeat_interleave(GROUP)
    return torch.stack([receivers, torch.where(filled, index[1].index_select(0, order), receivers)])


def by_receiver(receivers: Tensor, num_atoms: int) -> tuple[Tensor, Tensor]:
    """Slots for (e,) edges by the atom they add to.

    Parameters
    ----------
    receivers
        That atom of each edge.
    num_atoms
        How many atoms there are.

    Returns
    -------
    order : (s,) int64
        The edge in each slot; 0 where a slot is empty.
    filled : (s,) bool
        Whether a slot holds an edge. The first slot of each group does; without edges there is one group of empty
        slots.
    """
    edges = torch.bincount(receivers, minlength=num_atoms)
    groups = (edges + GROUP - 1) // GROUP
    first_slot = GROUP * (groups.cumsum(0) - groups)
    first_edge = edges.cumsum(0) - edges
    sorted_edges = torch.argsort(receivers, stable=True)
    # The k-th edge of an atom goes into the k-th slot of its groups.
    slot = torch.arange(len(receivers), device=receivers.device)
    slot = slot + (first_slot - first_edge)[receivers[sorted_edges]]
    count = GROUP * max(1, int(groups.sum()))
    order = sorted_edges.new_zeros(count).index_copy(0, slot, sorted_edges)
    filled = torch.zeros(count, dtype=torch.bool, device=order.device).index_fill(0, slot, True)
    return order, filled
