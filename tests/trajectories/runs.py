"""Rollouts of small structures and a loss on where they end, shared by the tests of their gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ase_finetune.optimize import CellOptions, FIREStep, GradientDescentStep, LBFGSStep
from ase_finetune.optimize.method import Method
from ase_finetune.optimize.relaxation import Relaxation
from ase_finetune.potentials import MorsePotential
from ase_finetune.potentials.base import Potential
from ase_finetune.trajectories.rollout import Rollout, rollout
from ase_finetune.trajectories.structures import Structures
from tests import morse
from tests.optimize.runs import cluster, small_cell, strained

STEPS = 8
METHODS: dict[str, Callable[..., Method[Any]]] = {
    "gradient descent": lambda **options: GradientDescentStep(**{"step_size": 0.02, "momentum": 0.6, **options}),
    "fire": lambda **options: FIREStep(**{"dt": 0.15, "Nmin": 2, **options}),
    "lbfgs": lambda **options: LBFGSStep(**{"memory": 4, "alpha": 50.0, **options}),
}
SHAPES = ("depth", "width", "distance")


def potential() -> MorsePotential:
    """The Morse potential of O and Si in float64."""
    return morse.pretrained().double()


def batch(cell: bool) -> list[Atoms]:
    """Structures of different sizes: crystals, and a molecule where the cells stay."""
    return [small_cell(0), strained(1)] if cell else [cluster(0), small_cell(0), strained(1)]


def run(atoms: Sequence[Atoms], method: str, model: Potential | None = None, **options: Any) -> Rollout:
    """A rollout of a few steps from structures with a method by its name or made."""
    made = METHODS[method]() if isinstance(method, str) else method
    return rollout(atoms, model or potential(), made, **{"steps": STEPS, **options})


def weighted(structures: Structures, seed: int = 7) -> Tensor:
    """A scalar of positions and cells that every coordinate matters to."""
    rng = np.random.default_rng(seed)
    on_atoms, on_cell = (torch.tensor(rng.normal(size=tuple(x.shape))) for x in (structures.positions, structures.cell))
    return (structures.positions * on_atoms).sum() + (structures.cell * on_cell).sum()


def loss_of(made: Rollout) -> Tensor:
    """:func:`weighted` of where a rollout of which nothing failed ended."""
    assert made.failed == {}
    assert made.structures is not None
    return weighted(made.structures)


def gradients(made: Rollout, loss: Tensor | None = None) -> list[Tensor]:
    """Of the loss by the parameters of the Morse potential."""
    assert made.path is not None
    native = made.path.relaxation.potential.native
    return list(
        torch.autograd.grad(
            loss_of(made) if loss is None else loss, [native[name] for name in SHAPES], retain_graph=True
        )
    )


def assert_close(one: Sequence[Tensor], two: Sequence[Tensor], rtol: float) -> None:
    """Whether gradients agree relative to the largest of each parameter's."""
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=rtol * float(b.abs().max()))


def moved(model: Potential, direction: Sequence[Tensor], change: float) -> Potential:
    """A copy of a potential with all parameters that require gradients moved along a direction."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, along in zip((p for p in copied.parameters() if p.requires_grad), direction, strict=True):
            parameter += change * along
    return copied


def directions(model: Potential, seed: int = 0) -> list[Tensor]:
    """Random directions, one for each parameter that requires gradients, as long as the parameter is."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for parameter in (p for p in model.parameters() if p.requires_grad):
        random = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        found.append(random * parameter.detach().abs().mean())
    return found


def along(model: Potential, direction: Sequence[Tensor]) -> float:
    """The derivative along a direction by the gradients that a backward pass has left."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    return sum(float((p.grad * v).sum()) for p, v in zip(wanted, direction, strict=True) if p.grad is not None)


def relaxed(atoms: Atoms, cell: bool | CellOptions, fmax: float = 1e-10) -> Atoms:
    """A minimum of the Morse potential near a structure."""
    from ase_finetune.optimize import relax
    from tests.optimize.runs import calculator

    (result,) = relax([atoms], calculator(), "fire", cell=cell, fmax=fmax, steps=3000)
    assert result.converged
    result.atoms.calc = None
    return result.atoms


def relaxation_of(atoms: Sequence[Atoms], cell: CellOptions | None, model: Potential | None = None) -> Relaxation:
    """The map of structures; the optimizer does not matter."""
    return Relaxation(model or potential(), FIREStep(), atoms, cell)


def crystal(count: int, seed: int) -> Atoms:
    """A few atoms in a cell without symmetry, near a well-conditioned minimum of the Morse potential."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * 4.0 * (count / 4) ** (1 / 3) + rng.normal(scale=0.3, size=(3, 3))
    sites = np.array([(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)])[:count]
    scaled = sites + rng.normal(scale=0.05, size=(count, 3))
    return Atoms(["Si", "O", "Si", "Si"][:count], scaled_positions=scaled, cell=cell, pbc=True)


def rattled(atoms: Atoms, seed: int = 0) -> Atoms:
    """A copy whose free atoms are displaced by 0.03 Å; its mean stays, as that of a relaxation does."""
    copied = atoms.copy()
    moves = np.random.default_rng(seed).normal(scale=0.03, size=(len(atoms), 3))
    copied.set_positions(atoms.positions + moves - moves.mean(axis=0))  # constraints hold what they fix
    return copied
