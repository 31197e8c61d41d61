"""Relaxing many crystals with their cells: relax() against a loop of ASE's FIRE, and against torch-sim's batches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ase import Atoms

from ase_finetune import FinetunedCalculator
from ase_finetune.optimize import relax
from benchmarks.gpu.comparing import paired
from benchmarks.gpu.models import accelerations, shared
from benchmarks.gpu.stage import Bench, SkippedError, Task
from benchmarks.inputs import MODEL
from benchmarks.paired import seconds
from benchmarks.peers import sevennet_calculator
from benchmarks.relaxation import FMAX, STEPS, Relaxed, against_torch_sim, agreement, crystals
from benchmarks.relaxation import loop as ase_loop
from benchmarks.suite import Missing

#: Largest ratios that are good enough on a GPU: against the loop, and against torch-sim.
GOAL, TORCH_SIM_GOAL = 0.05, 0.7

#: Seconds that the loop may take: it is measured on some of the crystals, and its time scaled by the steps.
LOOP_SECONDS = 20.0


def loop(bench: Bench) -> Iterator[Task]:
    """Against one optimizer of ASE after the other."""
    for suffix, options in accelerations(bench.on_gpu).items():
        yield f"relax crystals, against a loop{suffix}", functools.partial(_against_loop, bench, options)


def torch_sim(bench: Bench) -> Iterator[Task]:
    """Against batches of torch-sim."""
    for suffix, options in accelerations(bench.on_gpu).items():
        yield f"relax crystals, against torch-sim{suffix}", functools.partial(_against_torch_sim, bench, options)


def batched(
    structures: list[Atoms], calculator: FinetunedCalculator, steps: int, options: Mapping[str, Any]
) -> Relaxed:
    """Ours."""

    def way() -> tuple[list[float], list[int]]:
        ends = relax(structures, calculator, "fire", cell=True, fmax=FMAX, steps=steps, **options)
        energies = [np.nan if end.failure else end.atoms.get_potential_energy() / len(end.atoms) for end in ends]
        return energies, [end.steps for end in ends]

    return Relaxed(way)


def ready(bench: Bench, options: Mapping[str, Any]) -> tuple[list[Atoms], str, Relaxed, int]:
    """The crystals, what they are, our way to relax them after a first evaluation, and the largest number of steps."""
    structures, what = crystals(bench.setting)
    steps = bench.size(2, STEPS, STEPS)
    calculator = FinetunedCalculator(shared(MODEL, bench.device), device=str(bench.device))
    batched(structures[:2], calculator, 2, options)()
    return structures, what, batched(structures, calculator, steps, options), steps


def _against_loop(bench: Bench, options: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of all crystals; the loop's are those of some, in proportion to the steps."""
    structures, what, ours, steps = ready(bench, options)
    times = [seconds(ours) for _ in range(bench.size(1, 1, 2))]
    calculator = sevennet_calculator(bench.device)
    calculator.calculate(structures[0], ["energy", "forces", "stress"])
    taken, energies, made, done = 0.0, list[float](), 0, list[int]()
    for number in np.random.default_rng(0).permutation(len(structures)):
        one = ase_loop([structures[number]], calculator, steps)
        taken += seconds(one)
        energies, made, done = [*energies, *one.energies], made + sum(one.steps), [*done, int(number)]
        if taken > LOOP_SECONDS or bench.left < 0:
            break
    scaled = taken * sum(ours.steps) / max(made, 1)
    same = agreement([structures[k] for k in done], [ours.energies[k] for k in done], energies)
    notes = (
        f"{what}; {sum(ours.steps)} steps; the loop: {len(done)} of them, {made} steps in {taken:.1f} s, scaled; {same}"
    )
    return paired(times, [scaled], bench, GOAL, unit="s", against="a loop of ASE's FIRE", notes=notes)


def _against_torch_sim(bench: Bench, options: Mapping[str, Any]) -> dict[str, Any]:
    structures, what, ours, steps = ready(bench, options)
    row = against_torch_sim(bench.setting, structures, what, ours, steps)
    if isinstance(row, Missing):
        raise SkippedError(row.reason)
    return paired(row.measured.ours, row.measured.peer, bench, TORCH_SIM_GOAL, unit="s", notes=f"{what}; {row.notes}")
