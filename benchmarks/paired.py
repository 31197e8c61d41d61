"""Timing two ways of the same work in alternating repeats, and where it was done."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch


def compare(
    name: str, ours: Callable[[], object], peer: Callable[[], object], repeats: int = 9, warmup: int = 3
) -> float:
    """Print medians and their ratio (ours / peer), which is returned; below 1 ours is faster."""
    for _ in range(warmup):
        ours()
        peer()
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        # Both orders equally often, so that neither always finds the other's caches.
        for which in (0, 1) if repeat % 2 else (1, 0):
            start = time.perf_counter()
            (ours, peer)[which]()
            times[which].append(time.perf_counter() - start)
    medians = [statistics.median(values) for values in times]
    ratio = medians[0] / medians[1]
    spread = " ".join(f"{min(values):.4f}-{max(values):.4f}" for values in times)
    print(f"{name:44s} ours {medians[0]:.4f} s   peer {medians[1]:.4f} s   ratio {ratio:.3f}   (min-max {spread})")
    return ratio


def machine() -> str:
    """Processor, cores, threads and versions in one line."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.machine()}, {cores} cores, {torch.get_num_threads()} threads, {gpu}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
