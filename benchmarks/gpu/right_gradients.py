"""Gradients on the device against float64 on the CPU: of losses, penalties and relaxations, and their squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms

from ase_finetune.continual import EWCPenalty, FisherInformation, empirical_fisher, gaussian_fisher
from ase_finetune.graphs import collate
from ase_finetune.losses import Loss
from ase_finetune.optimize import FIREStep
from ase_finetune.potentials import Potential
from ase_finetune.trajectories import FixedPointSolver, GradientOptions
from benchmarks.bptt import flat_gradient, gradient
from benchmarks.gpu.models import graphs, plain, relative
from benchmarks.gpu.right_values import Twins, verdict

#: Largest relative errors of gradients by all parameters, in one vector.
BOUNDS = {"float32": 2e-3, "float64": 1e-7}

#: Steps of the relaxation that is differentiated through.
STEPS = 5


def of_loss(one: Twins, dtype: str) -> dict[str, Any]:
    """The loss of a batch of labelled structures and its gradient: what a training step is made of."""
    found, wanted = (_loss(model, one.frames) for model in (one.on(dtype), one.reference))
    errors = {"loss": abs(found[0] / wanted[0] - 1), "gradient": relative(found[1], wanted[1])}
    return verdict(errors, dict.fromkeys(errors, BOUNDS[dtype]), structures=len(one.frames))


def _loss(model: Potential, frames: Sequence[Atoms]) -> tuple[float, torch.Tensor]:
    batch = collate(graphs(model, frames)).to(model.device)
    model.zero_grad()
    value = Loss()(model.predict(batch, create_graph=True), batch)
    value.backward()
    return float(value), flat_gradient(model)


def penalty(one: Twins) -> dict[str, Any]:
    """Value and gradient of the EWC penalty at parameters that have moved."""
    found, wanted = (
        _penalty(one, device, dtype) for device, dtype in ((one.bench.device, "float32"), ("cpu", "float64"))
    )
    errors = {"penalty": abs(found[0] / wanted[0] - 1), "gradient": relative(found[1], wanted[1])}
    # What moved is a small difference of float32 numbers.
    return verdict(errors, dict.fromkeys(errors, 1e-4))


def _penalty(one: Twins, device: Any, dtype: str) -> tuple[float, torch.Tensor]:
    model, random = one.copied(torch.device(device), dtype), torch.Generator().manual_seed(0)
    named = dict(model.native_parameters(trainable_only=True))
    drawn = {name: torch.rand(p.shape, generator=random, dtype=torch.float64) for name, p in named.items()}
    made = EWCPenalty(named.items(), FisherInformation({name: drawn[name].to(p) for name, p in named.items()}), 2.0)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.add_((drawn[name] - 0.5).to(parameter))
    model.zero_grad()
    made.add_gradient()
    return made.value(), flat_gradient(model)


def fisher(one: Twins, kind: str) -> dict[str, Any]:
    """A form of the Fisher information; random signs and draws are the same on every device."""
    # Draws of another precision are others.
    dtype = "float64" if kind == "label-free" else "float32"
    found, wanted = (_fisher(model, kind, one.frames) for model in (one.on(dtype), one.reference))
    return verdict({"Fisher": relative(found, wanted)}, {"Fisher": BOUNDS[dtype]}, structures=len(one.frames))


def _fisher(model: Potential, kind: str, frames: Sequence[Atoms]) -> torch.Tensor:
    made = graphs(model, frames)
    if kind == "label-free":
        information = gaussian_fisher(model, made)
    else:
        information = empirical_fisher(model, made, probes=2 if kind == "probes" else None)
    return torch.cat([value.double().flatten() for value in information.values.values()])


def adjoint(one: Twins, dtype: str) -> dict[str, Any]:
    """The gradient back through a few steps of FIRE, cells included."""
    starts = one.frames[:2]
    options = {"steps": STEPS, "gradient": "adjoint", "cell": True}
    found, wanted = (_through(model, starts, options) for model in (one.on(dtype), one.reference))
    # A relaxation amplifies rounding.
    bound = {"float32": 2e-2, "float64": 1e-6}[dtype]
    return verdict({"gradient": relative(found, wanted)}, {"gradient": bound}, steps=STEPS)


def _through(model: Potential, starts: Sequence[Atoms], options: dict[str, Any]) -> torch.Tensor:
    bare = [plain(atoms) for atoms in starts]
    targets = [atoms.copy() for atoms in bare]
    for number, atoms in enumerate(targets):
        atoms.rattle(0.05, seed=number)
    gradient(model, bare, targets, options, FIREStep())
    return flat_gradient(model)


def implicit(one: Twins) -> dict[str, Any]:
    """The gradient of a relaxed structure as a fixed point."""
    # In the quick form a point on the way counts as fixed.
    fmax = one.bench.size(0.5, 0.01, 0.01)
    solver = FixedPointSolver(fmax=fmax, tolerance=1e-6)
    options = {"steps": 300, "fmax": fmax, "gradient": GradientOptions("implicit", solver=solver)}
    starts = one.frames[:1]
    found, wanted = (_through(model, starts, options) for model in (one.on("float64"), one.reference))
    return verdict({"gradient": relative(found, wanted)}, {"gradient": 1e-4})
