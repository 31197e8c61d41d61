"""Recorded runs, a loss on where they end, and its derivative from runs that are not recorded."""

from __future__ import annotations

import copy

import numpy as np
import torch
from ase.filters import FrechetCellFilter

from ase_finetune.optimize import FIRE, LBFGS, GradientDescent
from tests.optimize.runs import STRUCTURES, calculator

DRIVERS = {
    "gradient descent": (GradientDescent, {"step_size": 0.03, "momentum": 0.6}),
    "fire": (FIRE, {"dt": 0.15, "Nmin": 2}),
    "lbfgs": (LBFGS, {"memory": 4, "alpha": 50.0}),
}
PLACES = {"molecule": ("cluster", False), "cell": ("small", True)}
STEPS = 9


def drive(driver, name, cell, *, potential=None, shift=None, steps=STEPS, constraint=None, **options):
    """An optimizer after some steps from a structure whose positions are shifted."""
    optimizer, defaults = DRIVERS[driver]
    atoms = STRUCTURES[name].copy()
    atoms.positions += 0 if shift is None else shift
    atoms.set_constraint(constraint)
    atoms.calc = calculator(potential)
    made = optimizer(FrechetCellFilter(atoms) if cell else atoms, logfile=None, **(defaults | options))
    made.run(fmax=0.0, steps=steps)
    return made


def weights(rows, cell):
    rng = np.random.default_rng(7)
    return rng.normal(size=(rows, 3)), rng.normal(size=(3, 3)) * cell


def loss(made):
    """A scalar of the final structure that carries the gradient."""
    on_atoms, on_cell = (torch.as_tensor(w) for w in weights(len(made.positions), made.cell.requires_grad))
    return (made.positions * on_atoms).sum() + (made.cell * on_cell).sum()


def value(driver, name, cell, **options):
    """The same scalar from a run that is not recorded."""
    made = drive(driver, name, cell, **options)
    atoms = made.atoms.atoms if cell else made.atoms
    on_atoms, on_cell = weights(len(atoms), cell)
    return float((atoms.positions * on_atoms).sum() + (atoms.cell[:] * on_cell).sum())


def gradients(made):
    potential = (made.atoms.atoms if hasattr(made.atoms, "atoms") else made.atoms).calc.potential
    wanted = [potential.native[label] for label in ("depth", "width", "distance")]
    return torch.autograd.grad(loss(made), [made.start_positions, *wanted])


def changed(potential, label, element, change):
    """A copy of the potential with one parameter changed."""
    moved = copy.deepcopy(potential)
    with torch.no_grad():
        moved.native[label][element] += change
    return moved


def derivative(function, h=1e-5):
    """Fourth-order central difference at 0: steps of LBFGS have large third derivatives."""
    near, far = (function(k * h) - function(-k * h) for k in (1, 2))
    return (8 * near - far) / (12 * h)
