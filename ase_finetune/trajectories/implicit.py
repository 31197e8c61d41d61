"""The gradient of a converged structure by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ase_finetune.errors import InputError, TrainingError
from ase_finetune.optimize.adjoint import check_unchanged
from ase_finetune.optimize.layout import Layout
from ase_finetune.optimize.method import check_positive
from ase_finetune.optimize.relaxation import Relaxation, RelaxationState
from ase_finetune.trajectories.zero_modes import zero_modes


@dataclass(frozen=True)
class FixedPointSolver:
    """Tolerances of the implicit gradient.

    Parameters
    ----------
    fmax
        A structure is a fixed point when its largest force is below, eV/Å.
    tolerance
        Relative residual of the linear equations.
    max_iterations
        Hessian-vector products at most.
    on_failure
        ``"raise"`` if a structure's equations cannot be solved, or ``"drop"``: its gradient is 0 then, and
        the reason stands in the rollout's ``solver_failures``.
    """

    fmax: float = 0.01
    tolerance: float = 1e-3
    max_iterations: int = 200
    on_failure: str = "raise"

    def __post_init__(self) -> None:
        for name in ("fmax", "tolerance", "max_iterations"):
            check_positive(name, getattr(self, name))
        if self.on_failure not in ("raise", "drop"):
            raise InputError(f"on_failure must be 'raise' or 'drop', got {self.on_failure!r}")


def fixed_point(
    relaxation: Relaxation, state: RelaxationState, solver: FixedPointSolver, failures: dict[int, str] | None = None
) -> RelaxationState:
    """Attach the implicit gradient to a converged state.

    F(x*, theta) = 0 gives dx*/dtheta = H^-1 dF/dtheta with the Hessian H = -dF/dx, so with H u = dL/dx* the
    gradient is u . dF/dtheta. H is symmetric in these coordinates, with a variable cell too, and vanishes
    along translations and rotations, which are projected out.

    Parameters
    ----------
    relaxation
        The map; only its potential and coordinates matter here, not the optimizer.
    state
        Converged.
    solver
        Tolerances.
    failures
        Filled in the backward pass, by structure, with ``on_failure="drop"``.

    Raises
    ------
    TrainingError
        In the backward pass, if the equations of a structure cannot be solved: it is a saddle point, or
        ``max_iterations`` were not enough.

    References
    ----------
    S. Bai, J. Z. Kolter, V. Koltun, Deep Equilibrium Models, NeurIPS 2019.
    """
    parameters = [p for p in relaxation.potential.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("nothing requires a gradient: all parameters of the potential are frozen")
    rows: Tensor = _FixedPoint.apply(relaxation, state, solver, failures, *parameters)  # type: ignore[no-untyped-call]
    return RelaxationState(rows, state.method)


class _FixedPoint(torch.autograd.Function):
    """The converged coordinates; backward solves for the gradient by parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        relaxation: Relaxation,
        state: RelaxationState,
        solver: FixedPointSolver,
        failures: dict[int, str] | None,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.relaxation, ctx.state, ctx.solver, ctx.failures = relaxation, state, solver, failures
        ctx.parameters = parameters
        ctx.versions = [parameter._version for parameter in parameters]
        return state.coordinates.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        check_unchanged(ctx.parameters, ctx.versions)
        relaxation: Relaxation = ctx.relaxation
        graph, problems = relaxation.graph(ctx.state)
        if graph is None:
            raise TrainingError(f"the fixed point cannot be evaluated: {problems}")
        with torch.enable_grad():
            rows = ctx.state.coordinates.detach().requires_grad_()
            at = RelaxationState(rows, ctx.state.method)
            forces = relaxation.evaluate(at, graph, create_graph=True).forces
        modes = zero_modes(relaxation.coordinates, rows, graph.pbc)

        def hessian(vector: Tensor) -> Tensor:
            product: Tensor = torch.autograd.grad(forces, rows, vector, retain_graph=True)[0]
            return -product

        layout = relaxation.coordinates.layout
        project = _projector(modes, layout)
        fixed = _free_rows(relaxation)
        solution, reasons = conjugate_gradient(
            lambda v: project(fixed * hessian(v)), project(fixed * adjoint), layout, ctx.solver
        )
        _report(reasons, ctx)
        for index in reasons:
            solution = torch.where((layout.owner == index)[:, None], 0.0, solution)
        gradients = torch.autograd.grad(forces, ctx.parameters, solution, allow_unused=True)
        return (None, None, None, None, *gradients)


def _report(reasons: dict[int, str], ctx: Any) -> None:
    if reasons and ctx.solver.on_failure == "raise":
        index, reason = next(iter(reasons.items()))
        raise TrainingError(f"implicit gradient of structure {index} of the batch: {reason}")
    if ctx.failures is not None:
        ctx.failures.update(reasons)


def _free_rows(relaxation: Relaxation) -> Tensor:
    free = relaxation.coordinates.free
    cell_rows = free.new_ones((len(relaxation.coordinates.layout.owner) - len(free), 3))
    return torch.cat([free, cell_rows])


def _projector(modes: Tensor, layout: Layout) -> Callable[[Tensor], Tensor]:
    def project(vector: Tensor) -> Tensor:
        for mode in modes:
            vector = vector - layout.spread(layout.dot(mode, vector)) * mode
        return vector

    return project


def conjugate_gradient(
    hessian: Callable[[Tensor], Tensor], right: Tensor, layout: Layout, solver: FixedPointSolver
) -> tuple[Tensor, dict[int, str]]:
    """Solve H u = g for all structures of a batch at once; each has its own step lengths.

    Parameters
    ----------
    hessian
        v (N, 3) -> H v (N, 3), block diagonal in the structures.
    right : (N, 3)
        g.
    layout
        Of the rows.
    solver
        Tolerance and number of iterations.

    Returns
    -------
    u : (N, 3)
        The best there is.
    reasons
        For each structure whose equations were not solved, why.

    References
    ----------
    M. R. Hestenes, E. Stiefel, J. Res. Natl. Bur. Stand. 49, 409 (1952).
    """
    solution, residual, direction = torch.zeros_like(right), right, right
    square = layout.dot(residual, residual)
    goal = solver.tolerance**2 * square
    active, negative = square > goal, torch.zeros_like(square, dtype=torch.bool)
    for _ in range(int(solver.max_iterations)):
        if not bool(active.any()):
            break
        curved = hessian(direction)
        curvature = layout.dot(direction, curved)
        negative = negative | (active & (curvature <= 0))
        active = active & ~negative
        step = layout.spread(torch.where(active, square / torch.where(active, curvature, 1.0), 0.0))
        solution = solution + step * direction
        residual = residual - step * curved
        new = layout.dot(residual, residual)
        ratio = torch.where(active, new / torch.where(active, square, 1.0), 0.0)
        direction = torch.where(layout.spread(active), residual + layout.spread(ratio) * direction, 0.0)
        square = torch.where(active, new, square)
        active = active & (square > goal)
    reasons = {int(i): "the curvature is negative: it is a saddle point, not a minimum" for i in negative.nonzero()}
    for index in active.nonzero():
        left = float((square[index] / (goal[index] / solver.tolerance**2)).sqrt())
        reasons[int(index)] = (
            f"the linear equations are solved to {left:.1e} only after {solver.max_iterations} iterations; "
            "relax further (smaller fmax), use float64, or allow more iterations"
        )
    return solution, reasons
