"""LBFGS, the limited-memory quasi-Newton method, step for step as in ASE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.optimize.layout import Layout
from ase_finetune.optimize.method import (
    Method,
    Scalar,
    State,
    as_tensor,
    check_positive,
    limited,
    per_row,
    per_structure,
)


@dataclass(frozen=True)
class LBFGSState(State):
    """History of m steps, oldest first, and the last displacement and forces.

    A structure that has made fewer steps than others of its batch has zeros for those it lacks, which
    contribute nothing.

    Attributes
    ----------
    displacements, gradient_changes : (m, N, 3)
        s and y of the steps before the last.
    curvatures : (m, b)
        rho = 1/(s . y).
    displacement, forces : (N, 3)
        Of the last step.
    steps : (b,)
        Steps made.
    """

    displacements: Tensor = per_row(axis=1)
    gradient_changes: Tensor = per_row(axis=1)
    curvatures: Tensor = per_structure(axis=1)
    displacement: Tensor = per_row()
    forces: Tensor = per_row()
    steps: Tensor = per_structure()


@dataclass(frozen=True)
class LBFGSStep(Method[LBFGSState]):
    """LBFGS with the parameters and defaults of :class:`ase.optimize.LBFGS`, without line search.

    Parameters
    ----------
    alpha
        Curvature assumed at first, eV/Å².
    maxstep
        Largest displacement of one atom in Å.
    memory
        Steps to remember.
    damping
        Factor of every step.

    References
    ----------
    J. Nocedal, Math. Comput. 35, 773 (1980).
    """

    name: ClassVar[str] = "lbfgs"
    step_parameter: ClassVar[str] = "alpha"

    alpha: Scalar = 70.0
    maxstep: float = 0.2
    memory: int = 100
    damping: float = 1.0

    def __post_init__(self) -> None:
        for name in ("alpha", "maxstep", "memory", "damping"):
            check_positive(name, getattr(self, name))
        if self.maxstep > 1.0:
            raise InputError(f"maxstep={self.maxstep} Å is far too large for a step")

    def start(self, coordinates: Tensor, layout: Layout) -> LBFGSState:
        rows, count = len(coordinates), layout.count
        return LBFGSState(
            displacements=coordinates.new_zeros((0, rows, 3)),
            gradient_changes=coordinates.new_zeros((0, rows, 3)),
            curvatures=coordinates.new_zeros((0, count)),
            displacement=torch.zeros_like(coordinates),
            forces=torch.zeros_like(coordinates),
            steps=torch.zeros(count, dtype=torch.int64, device=coordinates.device),
        )

    def step(self, state: LBFGSState, forces: Tensor, layout: Layout) -> tuple[Tensor, LBFGSState]:
        s, y, rho = self._history(state, forces, layout)
        direction = self._direction(forces, s, y, rho, layout)
        displacement = self.damping * limited(direction, layout.longest(direction), self.maxstep, layout)
        return displacement, LBFGSState(s, y, rho, displacement, forces, state.steps + 1)

    def _history(self, state: LBFGSState, forces: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """The history with the step that led here added, its oldest entry dropped beyond the memory."""
        begun = state.steps > 0
        s = torch.where(layout.spread(begun), state.displacement, 0.0)
        y = torch.where(layout.spread(begun), state.forces - forces, 0.0)
        product = layout.dot(s, y)
        usable = product != 0
        rho = torch.where(usable, 1 / torch.where(usable, product, 1.0), 0.0)
        # With a history there was a step, whatever a GPU would say if it were asked.
        if not len(state.displacements) and not bool(begun.any()):
            return state.displacements, state.gradient_changes, state.curvatures
        extended = (
            torch.cat([old, new[None]])
            for old, new in zip(
                (state.displacements, state.gradient_changes, state.curvatures), (s, y, rho), strict=True
            )
        )
        displacements, changes, curvatures = (history[-self.memory :] for history in extended)
        return displacements, changes, curvatures

    def _direction(self, forces: Tensor, s: Tensor, y: Tensor, rho: Tensor, layout: Layout) -> Tensor:
        """Minus the inverse Hessian times the gradient by the two-loop recursion."""
        q = -forces
        factors: list[Tensor] = []
        for k in reversed(range(len(rho))):
            factors.insert(0, rho[k] * layout.dot(s[k], q))
            q = q - layout.spread(factors[0]) * y[k]
        z = q / as_tensor(self.alpha, forces)
        for k in range(len(rho)):
            z = z + s[k] * layout.spread(factors[k] - rho[k] * layout.dot(y[k], z))
        return -z
