"""One step of molecular dynamics with a MACE of public size: FinetunedCalculator against MACECalculator.

The weights are random, which changes no cost. The neighbour list, the way through ASE and the evaluation are timed
together, as MD has them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from ase_finetune import FinetunedCalculator
from ase_finetune.potentials.mace import MACEPotential
from benchmarks.inputs import random_mace, silicon
from benchmarks.md import CELLS, dynamics_row, steps_for
from benchmarks.peers import mace_calculator
from benchmarks.suite import Missing, Row, Setting, Target

TARGETS = {"64 to 512 Si atoms": Target(cpu=0.95, gpu=0.6)}
AGAINST = "MACECalculator"


def run(setting: Setting) -> Iterator[Row | Missing]:
    native = random_mace([3, 14, 15, 16], tiny=setting.quick)
    ours = FinetunedCalculator(MACEPotential(copy.deepcopy(native)).to(setting.device), device=str(setting.device))
    calculators = ours, mace_calculator(native, setting.device)
    if setting.quick:
        yield dynamics_row(setting, silicon(1, 1, 1), calculators, AGAINST, Target(None), 1)
        return
    for size, cells in CELLS.items():
        atoms = silicon(cells, cells, cells)
        # As long per look at the clock as SevenNet: a step of MACE is longer.
        steps = setting.size(1, max(1, steps_for(setting, size) // 2), 50)
        yield dynamics_row(setting, atoms, calculators, AGAINST, TARGETS["64 to 512 Si atoms"], steps)
