"""An evaluation that is recorded once, for graphs up to a capacity, and repeated with other numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ase_finetune.graphs import AtomGraph
from ase_finetune.graphs.edges import GROUP
from ase_finetune.potentials.base import Potential, Prediction

#: Slots that are recorded for each one in use, for the neighbours to come; and the share of the slots recorded under
#: which a smaller recording is worth making.
_ROOM, _TOO_LARGE = 1.15, 0.5

Evaluate = Callable[[], list[Prediction]]
Record = Callable[[Evaluate, torch.device], Evaluate]


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

    def __init__(self, potentials: Sequence[Potential], graph: AtomGraph, record: Record) -> None:
        self._capacity = _capacity(graph)
        self._edges = graph.edge_index
        self._own = graph.padded(*self._capacity)
        self._read = [place for potential in potentials for place in _places(potential)]

        def evaluate() -> list[Prediction]:
            with torch.no_grad():
                return [potential.predict(self._own) for potential in potentials]

        self._replay = record(evaluate, potentials[0].device)

    def fits(self, graph: AtomGraph) -> bool:
        """Whether a graph has room, without much of it to spare, and the weights are where they were."""
        sizes = _sizes(graph)
        fits = all(size <= capacity for size, capacity in zip(sizes, self._capacity, strict=True))
        near = sizes[2] >= _TOO_LARGE * self._capacity[2] / _ROOM
        return fits and sizes[0] < self._capacity[0] and near and all(place.is_unchanged for place in self._read)

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


class _Place(NamedTuple):
    """Where a tensor of a module is: in a dictionary of the module, and in memory."""

    owner: Mapping[str, Tensor | None]
    name: str
    tensor: Tensor
    address: int

    @property
    def is_unchanged(self) -> bool:
        return self.owner.get(self.name) is self.tensor and self.tensor.data_ptr() == self.address


def _places(potential: Potential) -> list[_Place]:
    """Of all parameters and buffers: a recording reads them where they are, and the tensors keep them there."""
    owners = [owner for module in potential.modules() for owner in (module._parameters, module._buffers)]
    return [
        _Place(owner, name, tensor, tensor.data_ptr())
        for owner in owners
        for name, tensor in owner.items()
        if tensor is not None
    ]
