"""Whether the device computes what float64 on the CPU does: values, gradients, trainings, and running out of memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from benchmarks.gpu import right_gradients, right_runs, right_values
from benchmarks.gpu.models import accelerations
from benchmarks.gpu.right_values import Twins
from benchmarks.gpu.stage import Bench, Task


def tasks(bench: Bench) -> Iterator[Task]:
    """Values of all models first; then what training needs, with the first model; then the same with the others."""
    twins = {name: Twins(name, bench) for name in bench.models}
    for one in twins.values():
        yield from _values(one)
    for number, one in enumerate(twins.values()):
        if number == 0:
            yield from _waiting(one)
        if number == 0 or not bench.quick:
            yield from _gradients(one, thorough=number == 0)
        if number == 0:
            yield "a model that cannot be recorded", functools.partial(right_values.not_recordable, one)
            yield from _runs(one)
    for one in list(twins.values())[1:]:
        yield from _waiting(one)


def _values(one: Twins) -> Iterator[Task]:
    for dtype in ("float32", "float64"):
        for suffix, options in accelerations(one.bench.on_gpu).items():
            name = f"{one.name} energy, forces, stress, {dtype}{suffix}"
            yield name, functools.partial(right_values.single, one, dtype, options)
    yield f"{one.name} batches, float32", functools.partial(right_values.batched, one)


def _gradients(one: Twins, thorough: bool) -> Iterator[Task]:
    for dtype in ("float32", "float64"):
        yield f"{one.name} gradient of the loss, {dtype}", functools.partial(right_gradients.of_loss, one, dtype)
    yield f"{one.name} EWC penalty", functools.partial(right_gradients.penalty, one)
    for kind in ("exact", "probes", "label-free"):
        yield f"{one.name} Fisher information, {kind}", functools.partial(right_gradients.fisher, one, kind)
    for dtype in ("float32", "float64"):
        yield f"{one.name} adjoint gradient, {dtype}", functools.partial(right_gradients.adjoint, one, dtype)
    if thorough:
        yield f"{one.name} implicit gradient, float64", functools.partial(right_gradients.implicit, one)


def _runs(one: Twins) -> Iterator[Task]:
    yield f"{one.name} training steps, float64", functools.partial(right_runs.steps, one)
    for suffix, options in accelerations(one.bench.on_gpu).items():
        for dtype in ("float64", "float32"):
            name = f"{one.name} batched relaxation, {dtype}{suffix}"
            yield name, functools.partial(right_runs.relaxation, one, dtype, options)
    yield f"{one.name} memory runs out", functools.partial(right_runs.halving, one)
    yield f"{one.name} save and load", functools.partial(right_runs.saved, one)
    yield f"{one.name} resumed training", functools.partial(right_runs.resumed, one)


def _waiting(one: Twins) -> Iterator[Task]:
    yield f"{one.name} evaluation without waiting", functools.partial(right_values.without_waiting, one)
    for suffix, options in accelerations(one.bench.on_gpu).items():
        name = f"{one.name} waits of an MD step{suffix}"
        yield name, functools.partial(right_values.waits, one, options)
