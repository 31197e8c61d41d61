"""One step of molecular dynamics with 7net-0: FinetunedCalculator against SevenNetCalculator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet

from ase_finetune import FinetunedCalculator
from benchmarks.inputs import MODEL, silicon
from benchmarks.paired import compare
from benchmarks.peers import sevennet_calculator
from benchmarks.suite import Missing, Row, Setting, Target

TARGETS = {"64 and 216 Si atoms": Target(cpu=0.9, gpu=0.5), "512 Si atoms": Target(cpu=0.9)}

#: Cubic cells in each direction.
CELLS = {64: 2, 216: 3, 512: 4}


def moving(start: Atoms, calculator: Any, steps: int) -> tuple[Atoms, Callable[[], object]]:
    """Atoms at 300 K, and a function that makes the next ``steps`` steps of 1 fs with them."""
    atoms = start.copy()
    # Half of it goes into the potential energy of a crystal.
    MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, timestep=units.fs)
    return atoms, lambda: dynamics.run(steps)


def dynamics_row(
    setting: Setting, atoms: Atoms, calculators: tuple[Any, Any], against: str, target: Target, steps: int
) -> Row:
    """Both calculators drive the same start; their trajectories must stay together."""
    (ours, our_steps), (peer, peer_steps) = (moving(atoms, calculator, steps) for calculator in calculators)
    times = setting.times(5 if len(atoms) < 500 or setting.on_gpu else 3)
    measured = compare(our_steps, peer_steps, **times, per=steps)
    made = steps * (times["repeats"] + times["warmup"])
    apart = np.abs(ours.positions - peer.positions).max()
    return Row(
        f"{len(atoms)} Si atoms",
        against,
        measured,
        target.on(setting),
        "s/step",
        f"velocity Verlet, 300 K, 1 fs; after {made} steps the two are {apart:.1e} Å apart",
    )


def steps_for(setting: Setting, size: int) -> int:
    """Steps between two looks at the clock: enough to meet new neighbour lists, few enough for a CPU."""
    steps: int = setting.size(1, max(2, 640 // size), 50)
    return steps


def run(setting: Setting) -> Iterator[Row | Missing]:
    ours = FinetunedCalculator(MODEL, device=str(setting.device))
    calculators = ours, sevennet_calculator(setting.device)
    if setting.quick:
        yield dynamics_row(setting, silicon(1, 1, 1), calculators, "SevenNetCalculator", Target(None), 1)
        return
    for size, cells in CELLS.items():
        target = TARGETS["512 Si atoms" if size == 512 else "64 and 216 Si atoms"]
        atoms = silicon(cells, cells, cells)
        yield dynamics_row(setting, atoms, calculators, "SevenNetCalculator", target, steps_for(setting, size))
