"""Training steps, reEWC, Fisher information and gradients through relaxations against the peers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ase_finetune.continual import FisherInformation, empirical_fisher, gaussian_fisher
from ase_finetune.data import read_frames
from ase_finetune.losses import Loss
from ase_finetune.optimize import FIREStep
from ase_finetune.potentials import load_potential
from benchmarks import bptt as unrolling
from benchmarks import fisher as fishers
from benchmarks import reewc_epoch
from benchmarks.gpu.comparing import paired
from benchmarks.gpu.models import shared
from benchmarks.gpu.stage import Bench, SkippedError, Task
from benchmarks.inputs import LIPS, MODEL, frames
from benchmarks.paired import alternate, compare, seconds
from benchmarks.peers import sevennet_epoch, sevennet_fisher
from benchmarks.training_step import our_epoch
from benchmarks.workers import MIB, Peak, Worker, WorkerError

#: Largest ratios that are good enough on a GPU.
TRAINING_GOAL, FISHER_GOAL, BPTT_TIME_GOAL, BPTT_MEMORY_GOAL = 0.7, 0.1, 1.3, 0.1


def target(bench: Bench) -> Path:
    """Frames to train on: LGPS, 50 atoms each, or LiPS where there are no research data."""
    return LIPS if bench.data is None else bench.data / "lgps_train.extxyz"


def step(bench: Bench) -> Iterator[Task]:
    """A naive training step on a batch of the target."""
    for size in bench.size((1,), (2,), (8, 32)):
        yield f"training step, {size} {target(bench).stem} frames", functools.partial(_step, bench, size)


def _step(bench: Bench, size: int) -> dict[str, Any]:
    potential, _ = load_potential(MODEL, device=bench.device)
    ours = our_epoch(potential, target(bench), size, 1, Loss(stress_weight=0.0))
    peer = sevennet_epoch(frames(target(bench), size), size, False, bench.device)
    measured = compare(ours, peer, **bench.setting.times())
    return paired(measured.ours, measured.peer, bench, TRAINING_GOAL, unit="s", against="sevenn's trainer")


def reewc(bench: Bench) -> Iterator[Task]:
    """An epoch of reEWC: target and replay steps in turn, with the penalty."""
    yield "reEWC epoch", functools.partial(_reewc, bench)


def _reewc(bench: Bench) -> dict[str, Any]:
    if not bench.peers.exists():
        raise SkippedError(f"{bench.peers} does not exist; it comes with the bundle, or by make bench-peers")
    batch, replay, steps = bench.size((1, 1, 2), (2, 4, 2), (8, 16, 3))
    options = reewc_epoch.worker_options(bench.setting, batch, replay, steps)
    try:
        with Worker(bench.peers, "sevenn_worker.py", options) as worker:
            ours = reewc_epoch.our_epoch(bench.setting, batch, replay, steps)
            measured = alternate(lambda: seconds(ours), worker.seconds, **bench.setting.times(3), per=steps)
    except WorkerError as error:
        raise SkippedError(f"the worker of {bench.peers} ended: {error}") from error
    notes = f"a pair of steps on {batch} LiPS and {replay} MPtrj frames"
    return paired(
        measured.ours, measured.peer, bench, TRAINING_GOAL, unit="s", against=reewc_epoch.AGAINST, notes=notes
    )


def fisher(bench: Bench) -> Iterator[Task]:
    """Fisher information of many structures; the loop with sevenn's model is timed once."""
    shared = Fishers(bench)
    count = bench.size(2, 20, 500)
    for kind in ("1 probe", "label-free", "exact"):
        yield f"Fisher information of {count}, {kind}", functools.partial(shared.measure, count, kind)


class Fishers:
    """Our forms of the Fisher information against one loop.

    Parameters
    ----------
    bench
        Where.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measure(self, count: int, kind: str) -> dict[str, Any]:
        """One form, warm."""
        potential = shared(MODEL, self._bench.device)
        graphs = list(read_frames(self._frames(count)).graphs(potential.cutoff))
        found: list[FisherInformation] = []

        def ours(some: Any = graphs) -> None:
            if kind == "label-free":
                found.append(gaussian_fisher(potential, some))
            else:
                found.append(empirical_fisher(potential, some, Loss(), probes=1 if kind == "1 probe" else None))

        ours(graphs[-min(count, 8) :])
        times = [seconds(ours) for _ in range(self._bench.size(1, 1, 1 if kind == "exact" else 3))]
        taken, exact = self._loop(count)
        notes = ""
        if kind != "label-free":  # which is another measure
            moved = fishers.displacement(self._bench.setting)
            notes = fishers.error(found[-1], exact, moved)
        return paired(
            times, [taken], self._bench, FISHER_GOAL, unit="s", against="a loop with sevenn's model", notes=notes
        )

    @functools.cache  # noqa: B019  # lives as long as its stage
    def _frames(self, count: int) -> Any:
        potential = shared(MODEL, self._bench.device)
        return fishers.structures(self._bench.setting, potential, count)

    @functools.cache  # noqa: B019
    def _loop(self, count: int) -> tuple[float, FisherInformation]:
        structures, found = self._frames(count), dict[str, Any]()
        sevennet_fisher(structures[-2:], self._bench.device)()  # warm
        loop = sevennet_fisher(structures, self._bench.device)
        taken = seconds(lambda: found.update(loop()))
        return taken, FisherInformation({name: value.cpu() for name, value in found.items()})


def bptt(bench: Bench) -> Iterator[Task]:
    """The gradient through a relaxation of 50 steps: time, and memory on a GPU, where it can be read exactly."""
    shared = Unrolling(bench)
    yield "BPTT, time", functools.partial(shared.compared, "seconds", "s", BPTT_TIME_GOAL)
    yield "BPTT, peak memory", functools.partial(shared.compared, "peak", "MiB", BPTT_MEMORY_GOAL)


class Unrolling:
    """Adjoint against unrolled gradients of the same relaxations.

    Parameters
    ----------
    bench
        Where.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def compared(self, measure: str, unit: str, goal: float) -> dict[str, Any]:
        """One measure of both sides."""
        if measure == "peak" and not self._bench.on_gpu:
            raise SkippedError("needs a GPU; python -m benchmarks bptt measures the memory of a CPU")
        count, steps, sides = self._measured()
        ours, peer = ([one[measure] for one in sides[kind]] for kind in ("adjoint", "plain"))
        norms = [sides[kind][0]["norm"] for kind in sides]
        notes = (
            f"{count} crystals, {steps} steps of FIRE; norms of gradients differ by {abs(norms[0] / norms[1] - 1):.0e}"
        )
        return paired(ours, peer, self._bench, goal, unit=unit, against="unrolled autograd", notes=notes)

    @functools.cache  # noqa: B019  # lives as long as its stage
    def _measured(self) -> tuple[int, int, dict[str, list[dict[str, float]]]]:
        wanted, steps = self._bench.size((1, 2), (2, 10), (20, 50))
        count = unrolling.affordable(self._bench.setting, wanted, steps)
        potential = shared(MODEL, self._bench.device)
        starts, targets = unrolling.pairs(count)
        sides: dict[str, list[dict[str, float]]] = {"adjoint": [], "plain": []}
        for made, keep in ((2, False), *[(steps, True)] * self._bench.size(1, 1, 2)):
            for kind, found in sides.items():
                measured = self._once(kind, potential, starts, targets, made)
                if keep:
                    found.append(measured)
        return count, steps, sides

    def _once(self, kind: str, potential: Any, starts: Any, targets: Any, steps: int) -> dict[str, float]:
        norms: list[float] = []

        def work() -> None:
            if kind == "adjoint":
                unrolling.gradient(potential, starts, targets, {"steps": steps, "gradient": kind}, FIREStep())
            else:
                unrolling.plain_autograd(potential, starts, targets, steps, FIREStep())
            norms.append(float(unrolling.flat_gradient(potential).norm()))

        peak = Peak(self._bench.device)
        taken = seconds(work)
        return {"seconds": taken, "peak": peak.read() / MIB, "norm": norms[0]}
