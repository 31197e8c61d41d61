"""Evaluating one structure after another: recorded once as a CUDA graph and replayed, where there is a GPU.

A small system keeps a GPU waiting for the program, which launches hundreds of kernels for each evaluation. A CUDA graph
launches them all at once. It needs shapes that stay: graphs are padded to a capacity, and edges beyond the cutoff are
masked (:meth:`ase_finetune.graphs.AtomGraph.padded`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph
from ase_finetune.graphs.edges import GROUP
from ase_finetune.potentials.base import Potential, Prediction

#: Values of ``accelerate``.
KINDS = ("auto", "graph", "none")

#: Evaluations before one is recorded: TorchScript still changes its code in the first ones.
WARM_UPS = 4

#: Slots that are recorded for each one in use, for the neighbours to come; and the share of the slots recorded under
#: which a smaller recording is worth making.
_ROOM, _TOO_LARGE = 1.15, 0.5

# Rounding, relative to the largest number, that a recording may show beside evaluations that differ by nothing.
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-9}

Evaluate = Callable[[], list[Prediction]]


def check_accelerate(accelerate: str, potentials: Sequence[Potential]) -> None:
    """Refuse an ``accelerate`` that cannot be had.

    Raises
    ------
    InputError
        That says why.
    """
    if accelerate not in KINDS:
        raise InputError(f"accelerate must be one of {', '.join(map(repr, KINDS))}, got {accelerate!r}")
    reason = _why_not(potentials)
    if accelerate == "graph" and reason is not None:
        raise InputError(f"accelerate='graph' {reason}; use accelerate='auto' or 'none'")


def _why_not(potentials: Sequence[Potential]) -> str | None:
    """Why these potentials cannot be recorded, to follow ``accelerate='graph'``; ``None`` if they can."""
    device = potentials[0].device
    if device.type != "cuda":
        return f"records CUDA graphs, which need a GPU, and the potential is on {device}"
    kinds = {f"{potential.backend} with a cutoff of {potential.cutoff:g} Å" for potential in potentials}
    if len(kinds) > 1:
        return f"records all members of an ensemble at once, and these are unlike ({', '.join(sorted(kinds))})"
    return None


def record_cuda_graph(evaluate: Evaluate) -> Evaluate:
    """What replays ``evaluate``, whose tensors must stay where they are; its results are overwritten each time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            evaluate()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = evaluate()

    def replay() -> list[Prediction]:
        graph.replay()
        return results

    return replay


class Evaluator:
    """Evaluates graphs one after the other, recorded or not.

    Parameters
    ----------
    potentials
        Evaluated on the same graphs.
    accelerate
        ``"graph"`` records; ``"auto"`` does where that is possible and gives the same numbers, checked with the first
        graph; ``"none"`` does not.
    record
        Makes the function that repeats an evaluation.
    possible
        Whether to record at all; ``None`` asks the potentials.
    """

    def __init__(
        self,
        potentials: Sequence[Potential],
        accelerate: str = "auto",
        *,
        record: Callable[[Evaluate], Evaluate] = record_cuda_graph,
        possible: bool | None = None,
    ) -> None:
        self._potentials = list(potentials)
        self._accelerate, self._record, self._possible = accelerate, record, possible
        self._recording: Recording | None = None
        self._checked = False

    def __getstate__(self) -> dict[str, Any]:
        # Recorded again where it is loaded.
        return self.__dict__ | {"_recording": None}

    def __call__(self, graph: AtomGraph) -> list[Prediction]:
        """The prediction of each potential, with forces and stress and without a graph of autograd.

        Parameters
        ----------
        graph
            On the device of the potentials. A recording takes over its edges only when they are another tensor than
            those of the last graph.
        """
        if not self._records():
            return self._eager(graph)
        if self._recording is None or not self._recording.fits(graph, self._potentials):
            self._recording = None  # before another one takes memory
            try:
                self._recording = self._recorded(graph)
            except (RuntimeError, NotImplementedError) as error:
                self._give_up(f"cannot be recorded: {str(error).splitlines()[0]}")
        return self._eager(graph) if self._recording is None else self._recording(graph)

    def _records(self) -> bool:
        if self._possible is None:
            self._possible = self._accelerate != "none" and _why_not(self._potentials) is None
        return self._possible

    def _eager(self, graph: AtomGraph) -> list[Prediction]:
        with torch.no_grad():
            return [potential.predict(graph) for potential in self._potentials]

    def _recorded(self, graph: AtomGraph) -> Recording | None:
        recording = Recording(self._potentials, graph, self._record)
        if not self._checked:
            one, other, replayed = self._eager(graph), self._eager(graph), recording(graph)
            if not _agree(one, other, replayed, self._potentials[0].dtype):
                self._give_up("gives other numbers than evaluations one by one")
                return None
            self._checked = True
        return recording

    def _give_up(self, reason: str) -> None:
        if self._accelerate == "graph":
            raise InputError(f"accelerate='graph': the evaluation of this model {reason}; use accelerate='none'")
        self._possible = False
        warnings.warn(f"the evaluation of this model {reason}; it goes on without CUDA graphs", stacklevel=2)


class Recording:
    """An evaluation of graphs of up to so many structures, atoms and slots, recorded with tensors of its own.

    Parameters
    ----------
    potentials
        Evaluated on each graph.
    graph
        The first one.
    record
        Makes the function that repeats an evaluation.
    """

    def __init__(
        self, potentials: Sequence[Potential], graph: AtomGraph, record: Callable[[Evaluate], Evaluate]
    ) -> None:
        self._capacity = _capacity(graph)
        self._edges = graph.edge_index
        self._own = graph.padded(*self._capacity)
        self._weights = _places(potentials)

        def evaluate() -> list[Prediction]:
            with torch.no_grad():
                return [potential.predict(self._own) for potential in potentials]

        self._replay = record(evaluate)

    def fits(self, graph: AtomGraph, potentials: Sequence[Potential]) -> bool:
        """Whether a graph has room, without much of it to spare, and the weights are where they were."""
        sizes = _sizes(graph)
        fits = all(size <= capacity for size, capacity in zip(sizes, self._capacity, strict=True))
        near = sizes[2] >= _TOO_LARGE * self._capacity[2] / _ROOM
        return fits and sizes[0] < self._capacity[0] and near and self._weights == _places(potentials)

    def __call__(self, graph: AtomGraph) -> list[Prediction]:
        """The predictions for a graph that fits."""
        if graph.edge_index is self._edges:
            self._own.positions[: len(graph.positions)].copy_(graph.positions)
            self._own.cell[: graph.num_graphs].copy_(graph.cell)
        else:
            given = graph.padded(*self._capacity).tensors()
            for name, value in self._own.tensors().items():
                value.copy_(given[name])
            self._edges = graph.edge_index
        structures, atoms, _ = _sizes(graph)
        return [_cut(prediction, structures, atoms) for prediction in self._replay()]


def _sizes(graph: AtomGraph) -> tuple[int, int, int]:
    """Structures, atoms and slots."""
    return graph.num_graphs, len(graph.numbers), graph.arranged().num_edges


def _capacity(graph: AtomGraph) -> tuple[int, int, int]:
    structures, atoms, slots = _sizes(graph)
    slots = GROUP * math.ceil(_ROOM * slots / GROUP)
    # A single structure keeps its atoms; of several some leave and others join.
    return structures + 1, atoms if structures == 1 else math.ceil(_ROOM * atoms), slots


def _cut(prediction: Prediction, structures: int, atoms: int) -> Prediction:
    """What is of the structures themselves, in tensors that the next evaluation does not overwrite."""
    forces, stress = prediction.forces, prediction.stress
    return Prediction(
        prediction.energies[:atoms].clone(),
        prediction.energy[:structures].clone(),
        None if forces is None else forces[:atoms].clone(),
        None if stress is None else stress[:structures].clone(),
    )


def _places(potentials: Sequence[Potential]) -> list[int]:
    """Where the weights are in memory: a recording reads them there."""
    return [parameter.data_ptr() for potential in potentials for parameter in potential.native.parameters()]


def _agree(
    one: Sequence[Prediction], other: Sequence[Prediction], replayed: Sequence[Prediction], dtype: torch.dtype
) -> bool:
    """Whether a replay differs from an evaluation by no more than twice what two evaluations differ by, or rounding."""
    for first, second, third in zip(one, other, replayed, strict=True):
        for a, b, c in zip(_numbers(first), _numbers(second), _numbers(third), strict=True):
            allowed = 2 * (a - b).abs().max() + _ROUNDING[dtype] * a.abs().max().clamp(min=1e-3)
            if not bool((a - c).abs().max() <= allowed):
                return False
    return True


def _numbers(prediction: Prediction) -> list[Tensor]:
    values = (prediction.energies, prediction.forces, prediction.stress)
    return [value for value in values if value is not None and value.numel()]
