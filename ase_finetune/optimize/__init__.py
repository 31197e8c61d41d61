"""Optimizers that look and step like ASE's and can be differentiated; batched relaxation."""

from ase_finetune.optimize.batched import relax
from ase_finetune.optimize.cell import CellOptions
from ase_finetune.optimize.drivers import FIRE, LBFGS, GradientDescent
from ase_finetune.optimize.fire import FIREStep
from ase_finetune.optimize.gradient_descent import GradientDescentStep
from ase_finetune.optimize.lbfgs import LBFGSStep
from ase_finetune.optimize.pool import Relaxed

__all__ = [
    "FIRE",
    "LBFGS",
    "CellOptions",
    "FIREStep",
    "GradientDescent",
    "GradientDescentStep",
    "LBFGSStep",
    "Relaxed",
    "relax",
]
