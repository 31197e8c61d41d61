"""FIRE, the fast inertial relaxation engine, step for step as in ASE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

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
class FIREState(State):
    """Velocities (N, 3), time step and mixing (b,), steps downhill (b,), whether no step was made yet (b,)."""

    velocity: Tensor = per_row()
    dt: Tensor = per_structure()
    mixing: Tensor = per_structure()
    downhill: Tensor = per_structure()
    fresh: Tensor = per_structure()


@dataclass(frozen=True)
class FIREStep(Method[FIREState]):
    """FIRE with the parameters, defaults and order of operations of :class:`ase.optimize.FIRE`.

    Parameters
    ----------
    dt, dtmax
        First and largest time step.
    maxstep
        Largest norm in Å of the whole displacement of a structure.
    Nmin
        Steps downhill before the time step grows.
    finc, fdec
        Factors of the time step downhill and after turning uphill.
    astart, a, fa
        Mixing of velocity and force: after turning uphill, at the beginning, and its factor downhill.

    Notes
    -----
    The decisions of the algorithm (is it downhill?) are not differentiated, everything else is.

    References
    ----------
    Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006).
    """

    name: ClassVar[str] = "fire"
    step_parameter: ClassVar[str] = "dt"

    dt: Scalar = 0.1
    maxstep: float = 0.2
    dtmax: float = 1.0
    Nmin: int = 5
    finc: float = 1.1
    fdec: float = 0.5
    astart: float = 0.1
    fa: float = 0.99
    a: float = 0.1

    def __post_init__(self) -> None:
        for name in ("dt", "maxstep", "dtmax", "finc", "fdec"):
            check_positive(name, getattr(self, name))

    def start(self, coordinates: Tensor, layout: Layout) -> FIREState:
        ones = coordinates.new_ones(layout.count)
        return FIREState(
            velocity=torch.zeros_like(coordinates),
            dt=as_tensor(self.dt, coordinates) * ones,
            mixing=self.a * ones,
            downhill=torch.zeros_like(ones, dtype=torch.int64),
            fresh=torch.ones_like(ones, dtype=torch.bool),
        )

    def step(self, state: FIREState, forces: Tensor, layout: Layout) -> tuple[Tensor, FIREState]:
        downhill = layout.dot(forces, state.velocity) > 0
        turned = ~(downhill | state.fresh)
        grown = downhill & (state.downhill > self.Nmin)
        dt = torch.where(grown, (state.dt * self.finc).clamp(max=self.dtmax), state.dt)
        dt = torch.where(turned, state.dt * self.fdec, dt)
        mixing = torch.where(grown, state.mixing * self.fa, state.mixing)
        mixing = torch.where(turned, torch.full_like(mixing, self.astart), mixing)
        velocity = torch.where(layout.spread(downhill), self._mixed(state, forces, layout), 0.0)
        velocity = velocity + layout.spread(dt) * forces
        displacement = layout.spread(dt) * velocity
        displacement = limited(displacement, layout.norm(displacement), self.maxstep, layout)
        steps = torch.where(downhill, state.downhill + 1, torch.zeros_like(state.downhill))
        return displacement, FIREState(velocity, dt, mixing, steps, torch.zeros_like(state.fresh))

    def _mixed(self, state: FIREState, forces: Tensor, layout: Layout) -> Tensor:
        """Velocity turned towards the force, by the mixing from before this step as in ASE."""
        force = layout.norm(forces)
        ratio = layout.norm(state.velocity) / torch.where(force > 0, force, 1.0)
        keep = layout.spread(1 - state.mixing)
        return keep * state.velocity + layout.spread(state.mixing * ratio) * forces
