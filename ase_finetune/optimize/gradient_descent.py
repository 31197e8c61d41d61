"""Gradient descent, with momentum if wanted: the map of the BPTT paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.optimize.layout import Layout
from ase_finetune.optimize.method import Method, Scalar, State, as_tensor, check_positive, limited, per_row


@dataclass(frozen=True)
class GradientDescentState(State):
    """The last displacement (N, 3), which momentum continues."""

    displacement: Tensor = per_row()


@dataclass(frozen=True)
class GradientDescentStep(Method[GradientDescentState]):
    """x_{t+1} = x_t + step_size F(x_t) + momentum (x_t - x_{t-1}).

    Parameters
    ----------
    step_size
        Å²/eV.
    momentum
        Share of the last displacement that is kept, from 0 (plain) to below 1 (heavy ball).
    maxstep
        Largest displacement of one atom in Å; ``None`` for no limit.

    References
    ----------
    Dramko et al., arXiv 2512.01067; B. T. Polyak, USSR Comput. Math. Math. Phys. 4, 1 (1964).
    """

    name: ClassVar[str] = "gradient-descent"
    step_parameter: ClassVar[str] = "step_size"

    step_size: Scalar = 0.01
    momentum: float = 0.0
    maxstep: float | None = 0.2

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        if self.maxstep is not None:
            check_positive("maxstep", self.maxstep)
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum must lie between 0 and 1, got {self.momentum}")

    def start(self, coordinates: Tensor, layout: Layout) -> GradientDescentState:
        del layout
        return GradientDescentState(torch.zeros_like(coordinates))

    def step(self, state: GradientDescentState, forces: Tensor, layout: Layout) -> tuple[Tensor, GradientDescentState]:
        displacement = as_tensor(self.step_size, forces) * forces + self.momentum * state.displacement
        if self.maxstep is not None:
            displacement = limited(displacement, layout.longest(displacement), self.maxstep, layout)
        return displacement, GradientDescentState(displacement)
