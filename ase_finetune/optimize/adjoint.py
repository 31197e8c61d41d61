"""Gradients through the steps of a relaxation: exact, in the memory of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph
from ase_finetune.optimize.relaxation import Relaxation, RelaxationState


@dataclass
class Path:
    """The steps of a relaxation, kept so that they can be differentiated.

    Attributes
    ----------
    relaxation
        The map.
    states
        k + 1 states without graph, the first one before the first step.
    graphs
        The k graphs whose edges the steps used (shared while a neighbour list was valid).
    active
        For each step which structures moved; ``None`` for all.
    gradient_norms
        After a backward pass by :func:`differentiate`: the norm of the loss's gradient by the coordinates
        before each step, in the order of the steps; NaN where it was not computed.
    clip_growth
        A structure's gradient that has grown by more than this factor on its way back is scaled down to it.
    """

    relaxation: Relaxation
    states: list[RelaxationState]
    graphs: list[AtomGraph] = field(default_factory=list)
    active: list[Tensor | None] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    clip_growth: float | None = None

    @property
    def num_steps(self) -> int:
        """Number of steps k."""
        return len(self.graphs)

    def record(self, graph: AtomGraph, active: Tensor | None, after: RelaxationState) -> None:
        """Add one step."""
        self.graphs.append(graph)
        self.active.append(active)
        self.states.append(after)

    def replay(self, step: int, state: RelaxationState) -> RelaxationState:
        """One step again, from a state that carries a graph."""
        evaluation = self.relaxation.evaluate(state, self.graphs[step], create_graph=True)
        return self.relaxation.move(state, evaluation.forces, self.active[step])

    def parameters(self) -> list[Tensor]:
        """What gradients are wanted of: trainable weights and hyperparameters of the optimizer."""
        weights = [p for p in self.relaxation.potential.parameters() if p.requires_grad]
        return [*weights, *self.relaxation.method.parameters()]


def differentiate(
    path: Path, start: RelaxationState, *, first: int = 0, last: int | None = None, unrolled: bool = False
) -> RelaxationState:
    """The final state of a path with the gradient through its steps ``first`` to ``last - 1``.

    Steps outside that window are passed over: the gradient by their final coordinates is taken for that by
    their first ones, and the optimizer's memory starts afresh.

    Parameters
    ----------
    path
        Of which the steps are known.
    start
        ``path.states[0]`` with the graph that leads there, if gradients of the start are wanted.
    first, last
        The window; the whole path by default.
    unrolled
        Keep the graphs of all steps of the window at once (the reference), instead of rebuilding
        one at a time.

    Raises
    ------
    InputError
        If there is nothing to differentiate.
    """
    last = path.num_steps if last is None else last
    if not any(tensor.requires_grad for tensor in (*start.tensors(), *path.parameters())):
        raise InputError("nothing requires a gradient: neither the potential's parameters nor the start")
    if unrolled:
        return _unrolled(path, start, first, last)
    final: tuple[Tensor, ...] = _Sweep.apply(
        path, first, last, len(start.tensors()), *start.tensors(), *path.parameters()
    )  # type: ignore[no-untyped-call]
    return path.states[-1].with_tensors(final)


def _unrolled(path: Path, start: RelaxationState, first: int, last: int) -> RelaxationState:
    state = start if first == 0 else _with_straight_gradient(path.states[first], start)
    for step in range(first, last):
        state = path.replay(step, state)
    return state if last == path.num_steps else _with_straight_gradient(path.states[-1], state)


def _with_straight_gradient(values: RelaxationState, source: RelaxationState) -> RelaxationState:
    """The coordinates of ``values`` with the gradient of those of ``source``."""
    difference = (values.coordinates - source.coordinates).detach()
    return RelaxationState(source.coordinates + difference, values.method)


def check_unchanged(parameters: Sequence[Tensor], versions: Sequence[int]) -> None:
    """Raise an :class:`InputError` if parameters were written to since their versions were taken."""
    if [parameter._version for parameter in parameters] != list(versions):
        raise InputError("the parameters were changed between the relaxation and its backward pass")


class _Sweep(torch.autograd.Function):
    """Backward through the steps, last to first, with the graph of one step at a time."""

    @staticmethod
    def forward(ctx: Any, path: Path, first: int, last: int, num_state: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.path, ctx.window, ctx.num_state = path, (first, last), num_state
        ctx.parameters = tensors[num_state:]
        ctx.versions = [parameter._version for parameter in ctx.parameters]
        final = tuple(tensor.clone() for tensor in path.states[-1].tensors())
        ctx.mark_non_differentiable(*[tensor for tensor in final if not tensor.is_floating_point()])
        return final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *adjoints: Tensor) -> tuple[Tensor | None, ...]:
        check_unchanged(ctx.parameters, ctx.versions)
        path: Path = ctx.path
        first, last = ctx.window
        parameters = [p for p in ctx.parameters if p.requires_grad]
        gradients = [torch.zeros_like(p) for p in parameters]
        path.gradient_norms = [float("nan")] * path.num_steps
        backward = list(adjoints) if last == path.num_steps else _coordinates_only(adjoints, path.states[last])
        largest = _largest(path, backward[0])
        for step in reversed(range(first, last)):
            backward = _clipped(path, _step_back(path, step, backward, parameters, gradients), largest)
            path.gradient_norms[step] = float(backward[0].norm())
        if first > 0:
            backward = _coordinates_only(backward, path.states[0])
        by_parameter = dict(zip((id(p) for p in parameters), gradients, strict=True))
        return (None, None, None, None, *backward, *(by_parameter.get(id(p)) for p in ctx.parameters))


def _coordinates_only(adjoints: Sequence[Tensor], state: RelaxationState) -> list[Tensor]:
    """Adjoints of another state: those of the coordinates, and zeros for its memory, which may be shorter."""
    return [adjoints[0], *(torch.zeros_like(tensor) for tensor in state.tensors()[1:])]


def _largest(path: Path, adjoint: Tensor) -> Tensor | None:
    """(b,) what the norm of a structure's gradient may grow to; ``None`` without bound."""
    if path.clip_growth is None:
        return None
    return path.clip_growth * path.relaxation.coordinates.layout.norm(adjoint)


def _clipped(path: Path, adjoints: list[Tensor], largest: Tensor | None) -> list[Tensor]:
    """Scale down all adjoints of the structures whose gradient by the coordinates is too large."""
    if largest is None:
        return adjoints
    layout = path.relaxation.coordinates.layout
    norm = layout.norm(adjoints[0])
    too_large = norm > largest
    if not bool(too_large.any()):
        return adjoints
    factor = torch.where(too_large, largest / torch.where(too_large, norm, 1.0), 1.0)
    return path.states[0].scaled(adjoints, factor, layout)


def _step_back(
    path: Path, step: int, adjoints: list[Tensor], parameters: list[Tensor], gradients: list[Tensor]
) -> list[Tensor]:
    """Pull the adjoints of the state after ``step`` back to the one before; add up those of parameters."""
    with torch.enable_grad():
        before = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in path.states[step].tensors()]
        after = path.replay(step, path.states[step].with_tensors(before)).tensors()
    pairs = [(out, adjoint) for out, adjoint in zip(after, adjoints, strict=True) if out.requires_grad]
    inputs = [tensor for tensor in before if tensor.requires_grad]
    found = torch.autograd.grad(
        [out for out, _ in pairs], [*inputs, *parameters], [adjoint for _, adjoint in pairs], allow_unused=True
    )
    for total, part in zip(gradients, found[len(inputs) :], strict=True):
        if part is not None:
            total += part
    pulled = dict(zip((id(tensor) for tensor in inputs), found, strict=False))
    return [torch.zeros_like(tensor) if (value := pulled.get(id(tensor))) is None else value for tensor in before]
