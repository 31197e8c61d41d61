"""Timing two ways of the same work in alternating repeats, and where it was done."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from ase_finetune.representations import counted

PACKAGES = "ase_finetune torch ase numpy vesin e3nn sevenn mace-torch torch-sim-atomistic".split()


@dataclass(frozen=True)
class Comparison:
    """What both sides measured, repeat by repeat."""

    ours: list[float]
    peer: list[float]

    @property
    def medians(self) -> tuple[float, float]:
        """Of ours and of the peer."""
        return statistics.median(self.ours), statistics.median(self.peer)

    @property
    def ratio(self) -> float:
        """Ours / peer; below 1 ours is faster."""
        ours, peer = self.medians
        return ours / peer

    @property
    def spread(self) -> str:
        """Smallest and largest value of both sides."""
        return " ".join(f"{min(values):.4g}-{max(values):.4g}" for values in (self.ours, self.peer))


def synchronize() -> None:
    """Wait for what the GPU was told to do: it answers before the work is done."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Time of one call, with a GPU idle before and after it."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def alternate(
    ours: Callable[[], float], peer: Callable[[], float], repeats: int = 5, warmup: int = 1, per: int = 1
) -> Comparison:
    """Both sides in turn, where each call answers with what it measured; results are divided by ``per``."""
    for _ in range(warmup):
        ours()
        peer()
    values: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        # Both orders equally often, so that neither always finds the other's caches.
        for which in (0, 1) if repeat % 2 else (1, 0):
            values[which].append((ours, peer)[which]() / per)
    return Comparison(*values)


def compare(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int = 5, warmup: int = 1, per: int = 1
) -> Comparison:
    """Seconds of both, in alternating repeats, for each of the ``per`` pieces of work that one call does."""
    return alternate(lambda: seconds(ours), lambda: seconds(peer), repeats, warmup, per)


def machine() -> str:
    """Processor, cores, threads and versions in one line."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return (
        f"{platform.machine()}, {counted(cores(), 'core')}, {counted(torch.get_num_threads(), 'thread')}, {gpu}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def versions() -> dict[str, str]:
    """Versions of what takes part, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
