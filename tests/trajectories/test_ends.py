from __future__ import annotations

import pytest
import torch
from ase.filters import FrechetCellFilter

from ase_finetune import FinetunedCalculator
from ase_finetune.errors import InputError
from ase_finetune.optimize import FIRE
from ase_finetune.trajectories import Structures, cell_strain, final_structure, rmsd
from tests import morse


@pytest.mark.parametrize("cell", [False, True])
def test_final_structure_carries_the_gradient(cell):
    atoms = morse.silicon(1, 1)[0]
    target = Structures.from_atoms([atoms])
    atoms.calc = FinetunedCalculator(morse.pretrained().double(), device="cpu", dtype="float64")
    opt = FIRE(FrechetCellFilter(atoms) if cell else atoms, logfile=None, differentiable=True)
    opt.run(fmax=1e-3, steps=4)
    end = final_structure(opt)
    assert torch.equal(end.positions, opt.positions)
    assert torch.equal(end.cell[0], opt.cell)
    assert torch.equal(end.masses, target.masses)
    (rmsd(end, target) + cell_strain(end, target)).sum().backward()
    assert opt.start_positions.grad.abs().max() > 0
    assert atoms.calc.potential.native["distance"].grad.abs().max() > 0


def test_only_of_differentiable_optimizers():
    atoms = morse.silicon(1, 1)[0]
    atoms.calc = FinetunedCalculator(morse.pretrained(), device="cpu")
    with pytest.raises(InputError, match="differentiable=True"):
        final_structure(FIRE(atoms, logfile=None))
