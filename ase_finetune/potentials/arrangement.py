"""Convolving the edges of a graph that lie in slots, in chunks where there are many."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ase_finetune.graphs import Edges
from ase_finetune.graphs.edges import GROUP

#: Slots that a CPU convolves at once. What a layer makes for more of them is not kept for the backward pass but made
#: again: with gigabytes at once, handing out the memory takes longer than the arithmetic.
LARGEST_CHUNK = 16_384


@dataclass(frozen=True)
class Arrangement:
    """Where the features of s slots come from and go to, as :class:`ase_finetune.graphs.Edges` describes slots.

    Attributes
    ----------
    senders : (s,) int64
        The atom whose features enter.
    receivers : (s / GROUP,) int64
        The atom each group adds to, ascending.
    atoms
        How many atoms there are to add to.
    """

    senders: Tensor
    receivers: Tensor
    atoms: int

    @classmethod
    def of(cls, edges: Edges, num_atoms: int) -> Arrangement:
        """That of ``edges`` in slots, between ``num_atoms`` atoms."""
        receivers, senders = edges.index
        return cls(senders, receivers[::GROUP], num_atoms)

    def chunks(self, slots: int) -> list[tuple[slice, Arrangement]]:
        """Parts of about so many slots and where they are; each adds to atoms of its own, in their order."""
        per_atom = GROUP * torch.bincount(self.receivers, minlength=self.atoms)
        ends = per_atom.cumsum(0).cpu().numpy()
        parts, first, start = [], 0, 0
        while first < self.atoms:
            last = max(first + 1, int(np.searchsorted(ends, start + slots, side="right")))
            stop = int(ends[last - 1])
            where, groups = slice(start, stop), slice(start // GROUP, stop // GROUP)
            owners = self.receivers[groups] - first
            parts.append((where, Arrangement(self.senders[where], owners, last - first)))
            first, start = last, stop
        return parts


def in_chunks(
    convolve: Callable[..., Tensor], features: Tensor, slots: tuple[Tensor, ...], edges: Arrangement
) -> Tensor:
    """What atoms receive: ``convolve(features, *slots, edges)``, on a CPU in chunks where there are many slots.

    Parameters
    ----------
    convolve
        Differentiable; may be called again in the backward pass.
    features
        Of all atoms.
    slots
        Tensors with a row per slot.
    edges
        The arrangement.
    """
    if len(edges.senders) <= LARGEST_CHUNK or features.device.type != "cpu":
        return convolve(features, *slots, edges)
    again = functools.partial(checkpoint, convolve, use_reentrant=False, preserve_rng_state=False)
    chunks = edges.chunks(LARGEST_CHUNK)
    return torch.cat([again(features, *(tensor[where] for tensor in slots), part) for where, part in chunks])
