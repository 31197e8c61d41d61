"""Edges side by side in groups that share their receiver, so that a matrix product can sum over them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Slots that a CPU convolves at once. What a layer makes for more of them is not kept for the backward pass but made
#: again: with gigabytes at once, handing out the memory takes longer than the arithmetic.
LARGEST_CHUNK = 16_384

#: Edges per matrix product. Measured on a CPU: 4 and more are alike, and each atom wastes up to one group less one.
GROUP = 4


@dataclass(frozen=True)
class Arrangement:
    """Edges in groups that share their receiver; s slots in s / GROUP groups.

    Attributes
    ----------
    order : (s,) int64
        The edge in each slot; any edge where a slot is empty.
    filled : (s, 1)
        1 where a slot holds an edge, 0 where it is empty.
    senders : (s,) int64
        The atom whose features enter.
    receivers : (s / GROUP,) int64
        The atom each group adds to, ascending.
    atoms
        How many atoms there are to add to.
    """

    order: Tensor
    filled: Tensor
    senders: Tensor
    receivers: Tensor
    atoms: int

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
            part = Arrangement(self.order[where], self.filled[where], self.senders[where], owners, last - first)
            parts.append((where, part))
            first, start = last, stop
        return parts


def arrange(senders: Tensor, receivers: Tensor, num_atoms: int, dtype: torch.dtype) -> Arrangement:
    """Put (e,) edges, at least one, into groups by receiver."""
    by_receiver = torch.argsort(receivers, stable=True)
    edges = torch.bincount(receivers, minlength=num_atoms)
    groups = (edges + GROUP - 1) // GROUP
    owners = torch.repeat_interleave(groups)
    first_slot = GROUP * (groups.cumsum(0) - groups)
    first_edge = edges.cumsum(0) - edges
    # The k-th edge of an atom goes into the k-th slot of its groups.
    slot = torch.arange(len(receivers), device=receivers.device)
    slot = slot + (first_slot - first_edge)[receivers[by_receiver]]
    order = by_receiver.new_zeros(GROUP * len(owners)).index_copy(0, slot, by_receiver)
    filled = torch.zeros(len(order), 1, dtype=dtype, device=order.device)
    filled[slot] = 1.0
    return Arrangement(order, filled, senders[order], owners, num_atoms)


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
    if len(edges.order) <= LARGEST_CHUNK or features.device.type != "cpu":
        return convolve(features, *slots, edges)
    again = functools.partial(checkpoint, convolve, use_reentrant=False, preserve_rng_state=False)
    chunks = edges.chunks(LARGEST_CHUNK)
    return torch.cat([again(features, *(tensor[where] for tensor in slots), part) for where, part in chunks])
