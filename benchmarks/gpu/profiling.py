"""What the GPU does in an MD step and in a training step: kernels, the time between them, and waiting for it."""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ase_finetune import FinetunedCalculator
from ase_finetune.finetuning.frame_task import FrameBatches
from ase_finetune.finetuning.updating import Updater
from ase_finetune.losses import Loss
from ase_finetune.potentials.memory import EdgeBudget
from benchmarks.gpu.models import accelerations, crystal, graphs, labelled, shared
from benchmarks.gpu.stage import Bench, Task
from benchmarks.md import moving
from benchmarks.paired import seconds

#: Steps that are recorded, after as many that are not.
STEPS = 3

#: How CUDA's runtime names what starts work, and what waits for it.
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def tasks(bench: Bench) -> Iterator[Task]:
    """Small structures first: they are bound by launches."""
    sizes = bench.size((8,), (8, 64), (64, 8, 512, 4096))
    for atoms in sizes:
        for suffix, options in accelerations(bench.on_gpu).items():
            yield f"MD step, {atoms} atoms{suffix}", functools.partial(_profiled, bench, _md_step, atoms, options)
        yield f"training step, {atoms} atoms", functools.partial(_profiled, bench, _training_step, atoms, {})


def _md_step(bench: Bench, atoms: int, options: Mapping[str, Any]) -> Callable[[], object]:
    calculator = FinetunedCalculator(shared("7net-0", bench.device), device=str(bench.device), **options)
    return moving(crystal(atoms), calculator, 1)[1]


def _training_step(bench: Bench, atoms: int, options: Mapping[str, Any]) -> Callable[[], object]:
    del options  # training has none
    model = shared("7net-0", bench.device)
    batch = graphs(model, labelled(model, [crystal(atoms)]))
    parameters = [parameter for _, parameter in model.native_parameters(trainable_only=True)]
    updater = Updater(torch.optim.Adam(parameters, lr=0.0))
    batches = FrameBatches(model, batch, Loss(), EdgeBudget(10**9))

    def step() -> None:
        for pieces in batches.pieces([[0]]):
            updater.update(pieces)

    return step


def _profiled(
    bench: Bench, make: Callable[..., Callable[[], object]], atoms: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    step = make(bench, atoms, options)
    for _ in range(1 if bench.quick else STEPS):
        step()
    plain = statistics.median(seconds(step) for _ in range(1 if bench.quick else STEPS))
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if bench.on_gpu else [])
    count = 1 if bench.quick else STEPS
    with profile(activities=activities) as recorded:
        taken = seconds(lambda: [step() for _ in range(count)])
    # Without the profiler, whose own time is a large part of the other.
    found = {"value": 1e3 * plain, "unit": "ms", "profiled_ms": 1e3 * taken / count}
    if not bench.on_gpu:
        return found | _operations(recorded, count)
    return found | summary(list(recorded.events() or []), count, plain)


def _operations(recorded: Any, count: int) -> dict[str, Any]:
    """The ten operations of a CPU that take longest in themselves."""
    found = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)[:10]
    largest = [[event.key[:80], event.self_cpu_time_total / count / 1e3, event.count / count] for event in found]
    return {"largest": largest, "short": f"{largest[0][0]} {largest[0][1]:.1f} ms"}


def summary(events: Sequence[Any], count: int, plain: float) -> dict[str, Any]:
    """What the events of ``count`` steps say about one.

    Parameters
    ----------
    events
        Of the profiler: kernels and copies on the device, calls of the runtime on the CPU.
    count
        Steps.
    plain
        Seconds of a step without the profiler.
    """
    on_device = sorted((e for e in events if e.device_type.name == "CUDA"), key=lambda e: e.time_range.start)
    spans = [(e.time_range.start, e.time_range.end) for e in on_device]
    busy, gaps = busy_time(spans)
    names = Counter(e.name for e in events if e.device_type.name == "CPU")
    launches = sum(number for name, number in names.items() if name.startswith(LAUNCHES))
    waits = {name: number / count for name, number in names.items() if name in WAITS}
    times: Counter[str] = Counter()
    for event in on_device:
        times[event.name[:80]] += event.time_range.end - event.time_range.start
    share = busy / count / (1e6 * plain)
    return {
        "kernels": len(on_device) / count,
        "launches": launches / count,
        "waits": waits,
        "busy_ms": busy / count / 1e3,
        "busy_share": share,
        "gap_us_median": statistics.median(gaps) if gaps else 0.0,
        "gap_ms_total": sum(gaps) / count / 1e3,
        "largest": [[name, time / count / 1e3] for name, time in times.most_common(10)],
        "short": f"{len(on_device) / count:.0f} kernels, {launches / count:.0f} launches, "
        f"{sum(waits.values()):.0f} waits, GPU busy {100 * share:.0f} %",
    }


def busy_time(spans: Sequence[tuple[float, float]]) -> tuple[float, list[float]]:
    """Time covered by spans that are sorted by their start, and the gaps between them."""
    busy, gaps, end = 0.0, list[float](), None
    for start, stop in spans:
        if end is not None and start > end:
            gaps.append(start - end)
        busy += max(0.0, stop - (start if end is None else max(start, end)))
        end = stop if end is None else max(end, stop)
    return busy, gaps
