"""When memory runs out: noticing it, halving the work, and finding out beforehand how much fits."""

from __future__ import annotations

import math
import sys
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
    # The allocator of the CPU has no error of its own, and TorchScript passes others on as text.
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def halve_if_out_of_memory(
    work: Callable[[list[int]], object],
    indices: Sequence[int],
    on_failure: Callable[[list[int]], object] | None = None,
) -> None:
    """Do ``work`` on the items; if memory runs out, on one half after the other.

    Parameters
    ----------
    work
        Must leave no trace when it fails.
    indices
        Of the items.
    on_failure
        Called with the items that did not fit, before their halves are tried.

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
        if on_failure is not None:
            on_failure(batch)
        half = (len(batch) + 1) // 2
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
    log
        Called with a line when memory runs out for the first time.
    """

    edges: int
    log: Callable[[str], object] | None = None
    _logged: bool = field(default=False, repr=False)

    def lower(self, edges: int) -> None:
        """Memory ran out with so many edges at once; pieces are to have half of them at most."""
        self.edges = max(1, min(self.edges, edges // 2))
        if self.log is not None and not self._logged:
            self._logged = True
            self.log(
                f"note: memory ran out with {edges} edges at once; batches are worked off in pieces of at most "
                f"{self.edges} edges (max_edges) from here on, with the same results"
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
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"a structure with {graph.num_edges} edges does not fit into the memory of {device}"
        ) from error
    per_edge = (torch.cuda.max_memory_allocated(device) - before) / max(1, graph.num_edges)
    torch.cuda.empty_cache()  # what the probe used is free again
    free, _ = torch.cuda.mem_get_info(device)
    return max(graph.num_edges, int(_SHARE * free / per_edge))


def peak_memory(device: torch.device) -> float:
    """The most memory in GB that was used so far: of the GPU by this process, or else by the process as a whole.

    NaN where the system does not report it.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 1e9
    try:
        import resource  # not on Windows
    except ImportError:
        return math.nan
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1e9 if sys.platform == "darwin" else 1e6)  # bytes there, kB elsewhere
