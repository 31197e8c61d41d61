"""Which examples come when: drawn from the seed alone, so that a resumed run can go back to any moment."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def epoch_batches(count: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch, from 1, each a list of positions; the last one may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epoch):
        indices = torch.randperm(count, generator=generator).tolist()
    return [indices[first : first + size] for first in range(0, len(indices), size)]


def endless_batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Shuffled batches without end, all of the same size."""
    size = min(size, count)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for first in range(0, count - size + 1, size):
            yield order[first : first + size]
