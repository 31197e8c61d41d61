"""When memory runs out: noticing it, halving the work, and finding out beforehand how much fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials.base import Potential

#: Edges at once on a CPU when training: smaller pieces of a batch stay in its caches.
CPU_EDGES = 2500

#: Share of the free memory of a GPU that a batch may take: a probe is no promise.
_SHARE = 0.7


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    # The allocator of the CPU has no error of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def halve_if_out_of_memory(
    work: Callable[[list[int]], object], indices: Sequence[int], on_halving: Callable[[int], object] | None = None
) -> None:
    """Do ``work`` on the items; if memory runs out, on one half after the other.

    Parameters
    ----------
    work
        Must leave no trace when it fails.
    indices
        Of the items.
    on_halving
        Called with the size of the halves.

    Raises
    ------
    MemoryError, RuntimeError
        As it came, if a single item does not fit.
    """
    todo = [list(indices)]
    while todo:
        batch = todo.pop()
        if _fits(work, batch):
            continue
        # Out of the handler: its error kept the tensors of the attempt alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = (len(batch) + 1) // 2
        if on_halving is not None:
            on_halving(half)
        todo += [batch[half:], batch[:half]]


def _fits(work: Callable[[list[int]], object], batch: list[int]) -> bool:
    try:
        work(batch)
    except (MemoryError, RuntimeError) as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
        return False
    return True


@dataclass
class EdgeBudget:
    """How many edges are worked on at once; less after memory ran out.

    Attributes
    ----------
    edges
        The bound.
    tell
        Told when memory runs out for the first time.
    """

    edges: int
    tell: Callable[[str], object] | None = None
    _told: bool = field(default=False, repr=False)

    def halve(self, size: int) -> None:
        """Memory ran out, and ``size`` examples are tried next."""
        before, self.edges = self.edges, max(1, self.edges // 2)
        if self.tell is not None and not self._told:
            self._told = True
            self.tell(
                f"note: memory ran out with up to {before} edges at once (max_edges); batches are worked off in "
                f"smaller pieces from here on, now {size} structures at a time, with the same results"
            )


def probe_edges(potential: Potential, graph: AtomGraph, loss: Callable[[AtomGraph], Tensor]) -> int:
    """How many edges fit into memory at once when a loss is differentiated.

    On a GPU one such step is made and its memory measured. On a CPU the answer is :data:`CPU_EDGES`, which is fastest
    there and far from filling any memory.

    Parameters
    ----------
    potential
        Its device is asked.
    graph
        One that is typical, or several.
    loss
        Of the graph, differentiable in the parameters.

    Raises
    ------
    InputError
        If not even this graph fits.
    """
    device = potential.device
    if device.type != "cuda":
        return CPU_EDGES
    parameters = [parameter for parameter in potential.parameters() if parameter.requires_grad]
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        torch.autograd.grad(loss(graph.to(device)), parameters, allow_unused=True)
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(
            f"a structure with {graph.num_edges} edges does not fit into the memory of {device}"
        ) from error
    per_edge = (torch.cuda.max_memory_allocated(device) - before) / max(1, graph.num_edges)
    free, _ = torch.cuda.mem_get_info(device)
    return max(graph.num_edges, int(_SHARE * free / per_edge))
