"""How often a relaxation asks a device for numbers, which a GPU would have to finish its work for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ase_finetune.optimize import CellOptions, FIREStep, LBFGSStep, relax
from ase_finetune.optimize.relaxation import Relaxation
from tests.optimize.runs import calculator, small_cell, strained
from tests.optimize.test_relaxation import advance, potential

METHODS = {"fire": FIREStep(), "lbfgs": LBFGSStep()}
CELLS = {"fixed": None, "variable": CellOptions()}


class Reads(TorchDispatchMode):
    """Counts operations whose result a program cannot go on without."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "bincount", "unique")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def copies(monkeypatch):
    """The tensors that were copied to the CPU."""
    found: list[torch.Tensor] = []
    copy = torch.Tensor.cpu

    def counted(tensor):
        found.append(tensor)
        return copy(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    return found


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_moving_and_checking_read_nothing(method, cell):
    relaxation = Relaxation(potential(), method, [small_cell(0), strained(1)], cell)
    state = advance(relaxation, relaxation.start(), 3)
    forces = relaxation.evaluate(state, relaxation.graph(state)[0]).forces
    with Reads() as reads:
        relaxation.checks(relaxation.move(state, forces))
    assert reads.count == 0


@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
def test_a_step_of_a_batch_reads_once(optimizer, cell, copies):
    # All leave together, and lists are built once: what the beginning and the end read does not depend on the steps.
    start = [small_cell(0), strained(1), small_cell(2)]
    counts = {}
    for steps in (3, 10):
        copies.clear()
        results = relax(start, calculator(), optimizer, cell=cell, fmax=1e-9, steps=steps, maxstep=0.01)
        assert [result.steps for result in results] == [steps] * 3
        counts[steps] = len(copies)
    assert counts[10] - counts[3] == 10 - 3
