"""Evaluating one structure after another: recorded once as a CUDA graph and replayed, where there is a GPU.

A small system keeps a GPU waiting for the program, which launches hundreds of kernels for each evaluation. A CUDA graph
launches them all at once. It needs shapes that stay: graphs are padded to a capacity, and edges beyond the cutoff are
masked (:meth:`ase_finetune.graphs.AtomGraph.padded`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials.base import Potential, Prediction
from ase_finetune.potentials.memory import is_out_of_memory
from ase_finetune.potentials.recording import Evaluate, Record, Recording

#: Values of ``accelerate``.
KINDS = ("auto", "graph", "none")

#: Evaluations before one is recorded: TorchScript still changes its code in the first ones.
WARM_UPS = 4

# Rounding, relative to the largest number, that a recording may show beside evaluations that differ by nothing.
_ROUNDING, _COARSE = {torch.float32: 1e-5, torch.float64: 1e-9}, 1e-2

# By how much atoms are moved (Å), and cells stretched (relative), to see whether a recording reacts.
_SHAKEN = 0.02


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


def record_cuda_graph(evaluate: Evaluate, device: torch.device) -> Evaluate:
    """What replays ``evaluate``, whose tensors must stay where they are; its results are overwritten each time.

    Parameters
    ----------
    evaluate
        Must not wait for the device, nor make anything on another.
    device
        A GPU.
    """
    with torch.cuda.device(device):
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # left in order, too, should recording fail
            for _ in range(WARM_UPS):
                evaluate()
            # What cannot be recorded is noticed before it leaves torch in the middle of a recording.
            _without_waiting(evaluate)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                results = evaluate()
        torch.cuda.current_stream().wait_stream(stream)

    def replay() -> list[Prediction]:
        graph.replay()
        return results

    return replay


def _without_waiting(evaluate: Evaluate) -> None:
    """Evaluate; an error if the program would wait for a GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        evaluate()
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Evaluator:
    """Evaluates graphs one after the other, recorded or not.

    Parameters
    ----------
    potentials
        Evaluated on the same graphs.
    accelerate
        ``"graph"`` records; ``"auto"`` does where that is possible and gives the same numbers, for the second graph in
        a row that has the same edges: structures that are all different are not worth it; ``"none"`` does not.
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
        record: Record = record_cuda_graph,
        possible: bool | None = None,
    ) -> None:
        self._potentials = list(potentials)
        self._accelerate, self._record, self._possible = accelerate, record, possible
        self._recording: Recording | None = None
        self._last_edges: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Recorded again where it is loaded.
        return self.__dict__ | {"_recording": None, "_last_edges": None}

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
        if self._recording is None or not self._recording.fits(graph):
            self._recording = None  # before another one takes memory
            if self._accelerate == "graph" or graph.edge_index is self._last_edges:
                self._record_for(graph)
        self._last_edges = graph.edge_index
        return self._eager(graph) if self._recording is None else self._recording(graph)

    def forget(self) -> None:
        """Give back the memory that a recording holds."""
        self._recording = self._last_edges = None

    def _records(self) -> bool:
        if self._possible is None:
            self._possible = self._accelerate != "none" and _why_not(self._potentials) is None
        return self._possible

    def _eager(self, graph: AtomGraph) -> list[Prediction]:
        with torch.no_grad():
            return [potential.predict(graph) for potential in self._potentials]

    def _record_for(self, graph: AtomGraph) -> None:
        try:
            recording = Recording(self._potentials, graph, self._record)
            # Elsewhere than where it was recorded: one that only repeats itself would be right there.
            shaken = graph.positions + _SHAKEN * torch.sin(graph.positions)
            moved = graph.replace(positions=shaken, cell=(1 + _SHAKEN) * graph.cell)
            same = _agree(self._eager(moved), self._eager(moved), recording(moved), self._potentials[0].dtype)
        except (RuntimeError, NotImplementedError) as error:
            reason = "does not fit into memory twice" if is_out_of_memory(error) else f"waits: {_first_line(error)}"
            self._give_up(f"cannot be recorded as a CUDA graph, for it {reason}")
            return
        if same:
            self._recording = recording
        else:
            self._give_up("gives other numbers as a CUDA graph")

    def _give_up(self, reason: str) -> None:
        if self._accelerate == "graph":
            raise InputError(f"accelerate='graph': the evaluation of this model {reason}; use accelerate='none'")
        self._possible = False
        warnings.warn(f"the evaluation of this model {reason}; it goes on without", stacklevel=2)


def _first_line(error: BaseException) -> str:
    """Of the first of the errors that led to this one."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error) or type(error).__name__).splitlines()[0]


def _agree(
    one: Sequence[Prediction], other: Sequence[Prediction], replayed: Sequence[Prediction], dtype: torch.dtype
) -> bool:
    """Whether a replay differs from an evaluation by no more than twice what two evaluations differ by, or rounding."""
    for first, second, third in zip(one, other, replayed, strict=True):
        for a, b, c in zip(_numbers(first), _numbers(second), _numbers(third), strict=True):
            allowed = 2 * (a - b).abs().max() + _ROUNDING.get(dtype, _COARSE) * a.abs().max().clamp(min=1e-3)
            if not bool((a - c).abs().max() <= allowed):
                return False
    return True


def _numbers(prediction: Prediction) -> list[Tensor]:
    values = (prediction.energies, prediction.forces, prediction.stress)
    return [value for value in values if value is not None and value.numel()]
