"""Resident memory and speed of passes over a large database, streamed and in memory.

    python benchmarks/streaming_memory.py --frames 10000

A database of rattled rock salt with random labels is written into a temporary folder. Then, in a fresh
process each, its graphs are visited in random order, twice, and resident memory is told on the way:
streamed with the default cache, streamed without one, and in memory. The peak counts all of it, reading
and checking too. At the end the time of building a graph is compared with reading it from a file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from safetensors.torch import load_file, save_file

from ase_finetune.data import FrameSet, GraphLoader, read_frames
from ase_finetune.data.lazy_graphs import CACHE_BYTES
from ase_finetune.graphs import AtomGraph

CUTOFF, BATCH_SIZE, EPOCHS = 5.0, 8, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--kind", choices=["db", "aselmdb"], default="db")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"frames.{arguments.kind}"
        start = time.perf_counter()
        write(path, arguments.frames)
        size = path.stat().st_size / 2**20
        print(f"{arguments.frames} frames of 48 atoms, {size:.0f} MiB, written in {time.perf_counter() - start:.0f} s")
        for label, stream, cache_bytes, num_workers in (
            ("in memory", False, 0, 0),
            (f"streamed, cache of {CACHE_BYTES / 2**20:.0f} MiB", True, CACHE_BYTES, 0),
            ("streamed, no cache", True, 0, 0),
            ("streamed, no cache, 1 worker", True, 0, 1),
        ):
            # A fresh process: one that had more memory once keeps some of it.
            process = multiprocessing.get_context("spawn").Process(
                target=passes, args=(path, label, stream, cache_bytes, num_workers)
            )
            process.start()
            process.join()
        compare_with_files(path, Path(folder))


def write(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    cell = bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat((3, 2, 1))
    with connect(path) as database:
        for _ in range(count):
            atoms = cell.copy()
            atoms.positions += 0.1 * rng.normal(size=(48, 3))
            labels = {"energy": rng.normal(), "forces": rng.normal(size=(48, 3)), "stress": 0.01 * rng.normal(size=6)}
            atoms.calc = SinglePointCalculator(atoms, **labels)
            database.write(atoms)


def passes(path: Path, label: str, stream: bool, cache_bytes: int, num_workers: int) -> None:
    torch.set_num_threads(1)
    print(f"\n{label}\n  resident MiB: {resident():.0f} after imports", end="", flush=True)
    start = time.perf_counter()
    frames = read_frames(path, stream=stream)
    read = time.perf_counter() - start
    start = time.perf_counter()
    print(f", {resident():.0f} read", end="", flush=True)
    graphs = frames.graphs(CUTOFF, cache_bytes=cache_bytes)
    loader = GraphLoader(graphs, num_workers=num_workers)
    built = time.perf_counter() - start
    print(f", {resident():.0f} before the first epoch; every 1,000 frames:")
    seconds = []
    for epoch in range(EPOCHS):
        told = []
        start = time.perf_counter()
        for count, batch in enumerate(loader.batches(shuffled(frames, epoch)), start=1):
            assert all(graph.num_edges for graph in batch)
            if count * BATCH_SIZE % 1000 < BATCH_SIZE:
                told.append(f"{resident():.0f}")
        seconds.append(time.perf_counter() - start)
        print(f"  epoch {epoch + 1}: {' '.join(told)}")
    rates = ", ".join(f"{len(frames) / value:.0f}" for value in seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  peak {peak:.0f} MiB; read in {read:.1f} s, list of graphs in {built:.1f} s, then {rates} frames/s")


def shuffled(frames: FrameSet, seed: int) -> Iterator[list[int]]:
    order = np.random.default_rng(seed).permutation(len(frames)).tolist()
    return (order[first : first + BATCH_SIZE] for first in range(0, len(order), BATCH_SIZE))


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def compare_with_files(path: Path, folder: Path, count: int = 1000) -> None:
    torch.set_num_threads(1)
    graphs = read_frames(f"{path}@:{count}", stream=True).graphs(CUTOFF, cache_bytes=0)
    start = time.perf_counter()
    built = list(graphs)
    build = (time.perf_counter() - start) / len(built)
    files = [folder / f"{index}.safetensors" for index in range(len(built))]
    for graph, file in zip(built, files, strict=True):
        save_file({name: value.contiguous() for name, value in graph.tensors().items()}, file)
    start = time.perf_counter()
    for file in files:
        AtomGraph(**load_file(file))
    load = (time.perf_counter() - start) / len(files)
    print(
        f"\na graph of {built[0].num_edges} edges: row read and graph built in {1e3 * build:.2f} ms; "
        f"{built[0].num_bytes / 1024:.0f} kB from a file just written in {1e3 * load:.2f} ms"
    )


if __name__ == "__main__":
    main()
