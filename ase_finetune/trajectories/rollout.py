"""Relaxing a batch of structures so that losses on where they end can be differentiated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from ase import Atoms
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.optimize.adjoint import Path, differentiate
from ase_finetune.optimize.cell import CellOptions, cell_options
from ase_finetune.optimize.method import Method, check_positive
from ase_finetune.optimize.relaxation import DEFAULT_SKIN, Evaluation, Relaxation, RelaxationState
from ase_finetune.potentials.base import Potential
from ase_finetune.trajectories.implicit import FixedPointSolver, fixed_point
from ase_finetune.trajectories.structures import Structures

GradientKind = Literal["adjoint", "unrolled", "truncated", "implicit", "guided"]


@dataclass(frozen=True)
class GradientOptions:
    """How the gradient of the final structures is taken.

    Parameters
    ----------
    kind
        ``"adjoint"``: exact, every step rebuilt in the backward sweep, memory of one step.
        ``"unrolled"``: exact by plain autograd, memory grows with the steps; the reference.
        ``"truncated"``: through ``window`` steps only, memory and time of these.
        ``"implicit"``: of the converged structure as a fixed point, at a cost that does not grow with the steps.
        ``"guided"``: the implicit gradient of the end plus a loss on the structure after the first ``window``
        steps, differentiated exactly, which chooses the basin.
    window
        Steps of ``"truncated"`` and ``"guided"``.
    window_at
        Whether ``"truncated"`` goes through the ``"last"`` steps or the ``"first"`` ones.
    solver
        Tolerances of the fixed point (``"implicit"``, ``"guided"``).
    clip_growth
        A structure's gradient that has grown by more than this factor on its way back through the steps is
        scaled down to it; ``None`` for no bound. Not for ``"unrolled"``.
    """

    kind: GradientKind = "adjoint"
    window: int = 5
    window_at: Literal["last", "first"] = "last"
    solver: FixedPointSolver = field(default_factory=FixedPointSolver)
    clip_growth: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(GradientKind):
            raise InputError(f"gradient {self.kind!r} is not known; use one of {', '.join(get_args(GradientKind))}")
        if self.window < 1:
            raise InputError(f"window must be at least 1 step, got {self.window}")
        if self.clip_growth is not None:
            check_positive("clip_growth", self.clip_growth)
        if self.window_at not in ("last", "first"):
            raise InputError(f"window_at must be 'last' or 'first', got {self.window_at!r}")

    @property
    def needs_fixed_point(self) -> bool:
        """Whether the structures must be relaxed to convergence."""
        return self.kind in ("implicit", "guided")


@dataclass
class Rollout:
    """Where relaxations ended.

    Attributes
    ----------
    structures
        Final structures, with gradients; those of ``kept``, in that order. ``None`` if none was left.
    guide
        Structures after the differentiated window, of ``"guided"`` only.
    kept
        Positions in the list given of the structures that did not fail.
    failed
        Why the others did.
    steps : (len(kept),)
        Steps until a structure had converged, or all.
    fmax : (len(kept),)
        Largest force on a coordinate when it was last evaluated, eV/Å.
    path
        The recorded steps; its ``gradient_norms`` are there after a backward pass.
    solver_failures
        After a backward pass: of the structures (counted in ``kept``) without an implicit gradient, why.
    """

    structures: Structures | None
    guide: Structures | None = None
    kept: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    fmax: list[float] = field(default_factory=list)
    path: Path | None = None
    solver_failures: dict[int, str] = field(default_factory=dict)
    _energy: Callable[[], Tensor] | None = None

    def energy(self) -> Tensor:
        """(len(kept),) potential energies in eV of the final structures, differentiable through them too.

        An :class:`InputError` if none is left.
        """
        if self._energy is None:
            raise InputError("no structure is left to have an energy")
        return self._energy()


def rollout(
    structures: Sequence[Atoms],
    potential: Potential,
    method: Method[Any],
    *,
    steps: int,
    gradient: GradientKind | GradientOptions = "adjoint",
    cell: bool | CellOptions = False,
    fmax: float | None = None,
    skin: float = DEFAULT_SKIN,
) -> Rollout:
    """Relax structures together and keep what is needed to differentiate where they end.

    Parameters
    ----------
    structures
        Start; not changed. ``FixAtoms`` and ``FixCartesian`` are honoured.
    potential
        Gradients flow to its parameters that require them.
    method
        The optimizer's step, such as ``FIREStep()``; gradients flow to a step size that is a tensor.
    steps
        Steps to make, at most.
    gradient
        How to differentiate; see :class:`GradientOptions`.
    cell
        Whether, or how, the cells relax too.
    fmax
        Structures whose largest force is below (eV/Å) stay where they are. ``None``: all steps are made,
        except that fixed points (``"implicit"``, ``"guided"``) need one and take the solver's.
    skin
        Of the neighbour lists, Å.

    Returns
    -------
    The end of each structure. Those that explode, or do not converge where a fixed point is needed, are
    left out and named in ``failed``.

    Raises
    ------
    InputError
        If a structure or an option cannot be used.
    """
    options = GradientOptions(gradient) if isinstance(gradient, str) else gradient
    if steps < 1:
        raise InputError(f"a rollout needs at least one step, got steps={steps}")
    if fmax is not None:
        check_positive("fmax", fmax)
    if options.kind == "truncated" and options.window_at == "last" and fmax is not None:
        raise InputError(
            "gradient='truncated' goes through the last steps of the batch, in which a structure that converged "
            "before does not move: leave fmax out, so that all make all steps"
        )
    if not structures:
        return Rollout(None)
    if options.needs_fixed_point and fmax is None:
        fmax = options.solver.fmax
    relaxation = Relaxation(potential, method, structures, cell_options(cell), skin)
    kept = list(range(len(structures)))
    failed: dict[int, str] = {}
    while kept:
        run = _Run(relaxation, [structures[index] for index in kept], steps, fmax, options)
        failures = run.forward()
        if not failures:
            return run.result(kept, failed)
        # Its numbers would poison the others' gradients: once more without the structure that failed.
        failed.update({kept[index]: reason for index, reason in failures.items()})
        left = [index for index in range(len(kept)) if index not in failures]
        relaxation = relaxation.select(left)[0]
        kept = [kept[index] for index in left]
    return Rollout(None, failed=failed)


class _Run:
    """One forward pass over a batch of which every structure is expected to survive."""

    def __init__(
        self,
        relaxation: Relaxation,
        structures: Sequence[Atoms],
        steps: int,
        fmax: float | None,
        options: GradientOptions,
    ) -> None:
        self.relaxation, self.num_steps, self.fmax, self.options = relaxation, steps, fmax, options
        self.template = Structures.from_atoms(structures, device=relaxation.potential.device)
        self.start = relaxation.start()
        self.path = Path(relaxation, [self.start.detached()], clip_growth=options.clip_growth)
        count = relaxation.coordinates.layout.count
        self.steps = torch.full((count,), steps)
        self.last: Evaluation | None = None
        self.state = self.path.states[0]
        self.solver_failures: dict[int, str] = {}

    def forward(self) -> dict[int, str]:
        """Make the steps; returns why structures failed, in which case nothing else is usable."""
        for step in range(self.num_steps):
            with torch.no_grad():
                failures = self._step(step)
            if failures:
                return failures
            if self.fmax is not None and bool((self._fmax < self.fmax).all()):
                break
        return self._end()

    def _step(self, step: int) -> dict[int, str]:
        graph, failures = self.relaxation.graph(self.state)
        if graph is None:
            return failures
        self.last = self.relaxation.evaluate(self.state, graph)
        broken = ~self._fmax.isfinite()
        if broken.any():
            return {int(index): f"forces are not finite in step {step}" for index in broken.nonzero()}
        active = None
        if self.fmax is not None:
            active = self._fmax >= self.fmax
            self.steps[((~active.cpu()) & (self.steps == self.num_steps))] = step
            if not active.any():
                return {}
        self.state = self.relaxation.move(self.state, self.last.forces, active).detached()
        kind = self.options.kind
        if kind == "guided" and step >= self.options.window:
            return {}
        if kind != "implicit":
            self.path.record(graph, active, self.state)
        return {}

    def _end(self) -> dict[int, str]:
        """The last structures must be such that they can be evaluated, and converged where that is needed."""
        _, failures = self.relaxation.graph(self.state)
        if failures or not self.options.needs_fixed_point:
            return failures
        assert self.fmax is not None
        return {
            int(index): (
                f"not converged: the largest force is {float(self._fmax[index]):.3g} eV/Å after {self.num_steps} "
                f"steps, gradient={self.options.kind!r} needs less than {self.fmax:g}; allow more steps, "
                "use fire or lbfgs, or gradient='adjoint'"
            )
            for index in (self._fmax >= self.fmax).nonzero()
        }

    @property
    def _fmax(self) -> Tensor:
        assert self.last is not None
        return self.last.fmax

    def result(self, kept: list[int], failed: dict[int, str]) -> Rollout:
        """The final structures with their gradients."""
        guide = None
        if self.options.kind == "implicit":
            end = fixed_point(self.relaxation, self.state, self.options.solver, self.solver_failures)
        elif self.options.kind == "guided":
            guide = self._structures(differentiate(self.path, self.start))
            end = fixed_point(self.relaxation, self.state, self.options.solver, self.solver_failures)
        else:
            end = differentiate(self.path, self.start, unrolled=self.options.kind == "unrolled", **self._window())
        return Rollout(
            self._structures(end),
            guide,
            kept,
            failed,
            self.steps.tolist(),
            self._fmax.tolist(),
            self.path,
            self.solver_failures,
            lambda: self._energy(end),
        )

    def _window(self) -> dict[str, int]:
        if self.options.kind != "truncated" or self.options.window >= self.path.num_steps:
            return {}
        if self.options.window_at == "first":
            return {"last": self.options.window}
        return {"first": self.path.num_steps - self.options.window}

    def _structures(self, state: RelaxationState) -> Structures:
        positions, cell = self.relaxation.coordinates.structure(state.coordinates)
        return dataclasses.replace(self.template, positions=positions, cell=cell)

    def _energy(self, state: RelaxationState) -> Tensor:
        graph, failures = self.relaxation.graph(state)
        if graph is None:
            raise InputError(f"the final structures cannot be evaluated: {failures}")
        positions, cell = self.relaxation.coordinates.structure(state.coordinates)
        graph = graph.replace(positions=positions, cell=cell)
        return self.relaxation.potential.predict(graph, forces=False, stress=False).energy.double()
