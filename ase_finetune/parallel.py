"""Several processes as one: each does its share of the work, and all end up with the same result.

Processes are started from outside, by ``torchrun`` or SLURM's ``srun``; Lightning Fabric gives each its device and
carries what they say to each other.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ase_finetune.errors import InputError, ProcessError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")

#: Signals that ask a program to stop: Ctrl-C, what a cluster sends before it kills, and what ``sbatch --signal`` is
#: often given. Not every system has all of them.
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")


class Processes:
    """The processes that work together.

    All of them make the same calls in the same order.

    Parameters
    ----------
    fabric
        Launched; ``None`` for a process alone.
    """

    def __init__(self, fabric: Fabric | None = None) -> None:
        self._fabric = fabric
        self.rank = 0 if fabric is None else int(fabric.global_rank)
        self.size = 1 if fabric is None else int(fabric.world_size)

    @property
    def is_first(self) -> bool:
        """Whether this one talks and writes for all."""
        return self.rank == 0

    @property
    def device(self) -> torch.device | None:
        """The device this process was given; ``None`` for a process alone, which may choose."""
        return None if self._fabric is None else self._fabric.device

    def share(self, costs: Sequence[float]) -> list[int]:
        """Positions of the items that this process works on, ascending; costs are even over the processes."""
        if self.size == 1:
            return list(range(len(costs)))
        loads, own = [0.0] * self.size, []
        for position in sorted(range(len(costs)), key=lambda position: -costs[position]):
            lightest = loads.index(min(loads))
            # An item without cost is still an item.
            loads[lightest] += max(costs[position], 1e-9)
            if lightest == self.rank:
                own.append(position)
        return sorted(own)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, alike in all processes, by their sums over the processes."""
        if self._fabric is None or self.size == 1:
            return
        for group in _alike(tensors):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
            # One message for all; the strategy's own averages would forget how large the shares are.
            # The result, not what was given: that stays as it was if it lies on another device.
            sums = self._fabric.all_reduce(flat, reduce_op="sum")
            assert isinstance(sums, Tensor)
            for tensor, total in zip(group, sums.split([tensor.numel() for tensor in group]), strict=True):
                tensor.detach().copy_(total.view_as(tensor))

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums of numbers over the processes."""
        sums = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        self.sum_([sums])
        return [float(value) for value in sums.tolist()]

    def gather(self, item: T) -> list[T]:
        """What each process has, in the order of ranks."""
        if self._fabric is None or self.size == 1:
            return [item]
        return [self._fabric.broadcast(item, src=rank) for rank in range(self.size)]

    def same_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the first process."""
        if self._fabric is None or self.size == 1:
            return
        for group in _alike(tensors):
            # Through the memory of the host: a tensor on a GPU would arrive on the GPU it came from.
            flat = self._fabric.broadcast(torch.cat([tensor.detach().reshape(-1) for tensor in group]).cpu(), src=0)
            for tensor, value in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.detach().copy_(value.view_as(tensor))

    def on_first(self, work: Callable[[], T]) -> T | None:
        """Let the first process do something while the others wait; returns ``None`` to them.

        Raises
        ------
        ProcessError
            In the others, what ``work`` raised; the first process raises that itself.
        """
        return self.together(lambda: work() if self.is_first else None)

    def together(self, work: Callable[[], T]) -> T:
        """Let each process do something that may fail in some of them.

        Raises
        ------
        ProcessError
            In those where it did not fail; the others raise their own error.
        """
        try:
            result = work()
        except Exception as error:
            if self.size > 1:
                self.agree(error)
            raise
        self.agree(None)
        return result

    def agree(self, failure: Exception | None) -> None:
        """Raise if any process failed, in all of them: one that waits for another would wait forever.

        Raises
        ------
        ProcessError
            Naming the first process that failed. One that failed itself raises its own error.
        """
        if self.size == 1:
            if failure is not None:
                raise failure
            return
        if not any(self.total([float(failure is not None)])):
            return
        failures = self.gather(None if failure is None else (type(failure).__name__, str(failure)))
        if failure is not None:
            raise failure
        for rank, found in enumerate(failures):
            if found is not None:
                raise ProcessError(f"process {rank} of {self.size} stopped with {found[0]}: {found[1]}")


#: A process that works for itself.
ALONE = Processes()


def launched(device: str = "auto") -> Processes:
    """The processes that ``torchrun`` or ``srun`` started this one with; :data:`ALONE` if it was started by itself.

    Parameters
    ----------
    device
        ``"auto"`` (a GPU each where there are any), ``"cuda"`` or ``"cpu"``.

    Raises
    ------
    InputError
        If one device is named for several processes, or processes and GPUs do not fit.
    """
    found = layout(os.environ)
    if found is None:
        return ALONE
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind not in ("cuda", "cpu"):
        raise InputError(f"device={device!r} names one device for several processes; use 'auto', 'cuda' or 'cpu'")
    on_node, nodes, environment = found
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    backend = "nccl" if kind == "cuda" else "gloo"
    try:
        # The environment is named: left to itself Fabric takes some job names of SLURM for a launch of its own.
        cluster = SLURMEnvironment() if environment == "slurm" else TorchElasticEnvironment()
        strategy = DDPStrategy(cluster_environment=cluster, process_group_backend=backend)
        fabric = Fabric(accelerator=kind, devices=on_node, num_nodes=nodes, strategy=strategy)
        fabric.launch()
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise InputError(f"{on_node} processes on each of {nodes} nodes cannot be joined: {error}") from error
    # Fabric does so for GPUs only. Threads of gloo that are there when the interpreter ends abort the process now and
    # then, and torchrun calls a job failed that had done all of its work.
    atexit.register(_leave)
    return Processes(fabric)


def _leave() -> None:
    """Leave the group of processes, if nobody else did."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def layout(environment: Mapping[str, str]) -> tuple[int, int, str] | None:
    """Processes per node, nodes and launcher; ``None`` where there is none."""
    if "TORCHELASTIC_RUN_ID" in environment:
        everywhere, on_node = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        return on_node, everywhere // on_node, "torchrun"
    # Only srun sets these: a script that sbatch runs itself is alone, however many tasks were asked for.
    everywhere = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if everywhere > 1 and "SLURM_PROCID" in environment:
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
        return everywhere // nodes, nodes, "slurm"
    return None


def _alike(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors by dtype and device, each group in the order given."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())
