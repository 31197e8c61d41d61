"""How time grows: structures of 64 to 20,000 atoms, and batches of 1 to 2000 small crystals."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from ase_finetune import FinetunedCalculator
from benchmarks.gpu.fast import calculators
from benchmarks.gpu.models import accelerations, crystal, shared
from benchmarks.gpu.stage import Bench, Task
from benchmarks.growth import moving
from benchmarks.inputs import MODEL, small_crystals
from benchmarks.paired import seconds

#: Of the small crystals.
LARGEST = 12


def tasks(bench: Bench) -> Iterator[Task]:
    """SevenNet at all sizes and all batches, then MACE."""
    sizes = bench.size((8, 64), (64, 512), (64, 512, 4096, 10648, 20384))
    ways = accelerations(bench.on_gpu)
    for atoms in sizes:
        for suffix, options in ways.items():
            yield (
                f"evaluation 7net-0, {atoms} atoms{suffix}",
                functools.partial(_large, bench, "7net-0", atoms, options),
            )
    for count in bench.size((1, 8), (1, 32), (1, 10, 100, 500, 2000)):
        for edges in bench.size((20_000,), (20_000,), (20_000, 200_000)):
            yield f"batch of {count}, max_edges={edges}", functools.partial(_batch, bench, count, edges)
    for atoms in sizes:
        for suffix, options in ways.items():
            yield f"evaluation mace, {atoms} atoms{suffix}", functools.partial(_large, bench, "mace", atoms, options)


def _large(bench: Bench, model: str, atoms: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Energy, forces and stress of a crystal that moves as in MD."""
    calculator, _, _ = calculators(bench, model, options)
    step = moving(crystal(atoms), calculator)
    for _ in range(2):
        step()
    times = [seconds(step) for _ in range(bench.size(1, 3, 5))]
    value = 1e3 * statistics.median(times)
    return {"value": value, "unit": "ms", "all": times, "short": f"{1e3 * value / atoms:.3g} us an atom"}


def _batch(bench: Bench, count: int, edges: int) -> dict[str, Any]:
    """Crystals of at most 12 atoms that are evaluated together."""
    structures = small_crystals(count, LARGEST)
    calculator = FinetunedCalculator(shared(MODEL, bench.device), device=str(bench.device))
    work = functools.partial(calculator.calculate_many, structures, max_edges=edges)
    work()
    times = [seconds(work) for _ in range(bench.size(1, 2, 3))]
    value = 1e3 * statistics.median(times)
    return {"value": value, "unit": "ms", "all": times, "short": f"{value / count:.3g} ms a structure"}
