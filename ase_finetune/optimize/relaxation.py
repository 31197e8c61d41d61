"""Relaxation as an iterated map: one step of an optimizer on a batch of structures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ase import Atoms
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph, MovingGraph
from ase_finetune.graphs.cells import signed_volume
from ase_finetune.optimize.cell import CellOptions
from ase_finetune.optimize.coordinates import Coordinates
from ase_finetune.optimize.layout import Layout
from ase_finetune.optimize.method import Method, State
from ase_finetune.potentials.base import Potential, Prediction
from ase_finetune.potentials.capture import Evaluator

#: Skin in Å of the neighbour lists: relaxations move little from step to step.
DEFAULT_SKIN = 1.0

#: A cell that shrinks or grows by more than this factor in volume has exploded.
LARGEST_VOLUME_RATIO = 5.0

#: So has an atom that has moved by more than this (Å); neighbour lists of numbers without bounds may not end.
LARGEST_DISPLACEMENT = 1000.0


@dataclass(frozen=True)
class RelaxationState:
    """Coordinates (N, 3) in Å and the state of the optimizer."""

    coordinates: Tensor
    method: State

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, the coordinates first."""
        return (self.coordinates, *self.method.tensors())

    def with_tensors(self, tensors: Sequence[Tensor]) -> RelaxationState:
        """A state of the same kind with other tensors."""
        return RelaxationState(tensors[0], self.method.with_tensors(tensors[1:]))

    def scaled(self, tensors: Sequence[Tensor], factor: Tensor, layout: Layout) -> list[Tensor]:
        """Tensors like those of this state, each structure's multiplied by its factor (b,)."""
        return [tensors[0] * layout.spread(factor), *self.method.scaled(tensors[1:], factor, layout)]

    def select(self, rows: Tensor, structures: Tensor) -> RelaxationState:
        """The state of some structures, given the indices of their rows and their own."""
        return RelaxationState(self.coordinates[rows], self.method.select(rows, structures))

    def joined(self, other: RelaxationState, order: Tensor) -> RelaxationState:
        """The state of two batches as one; ``order`` is that of their rows, one after the other."""
        coordinates = torch.cat([self.coordinates, other.coordinates])[order]
        return RelaxationState(coordinates, self.method.joined(other.method, order))

    def detached(self) -> RelaxationState:
        """The same values without their graph."""
        return RelaxationState(self.coordinates.detach(), self.method.detached())


@dataclass(frozen=True)
class Evaluation:
    """Forces on the coordinates (N, 3), their longest row (b,) in eV/Å, and the prediction they are from."""

    forces: Tensor
    fmax: Tensor
    prediction: Prediction

    @property
    def energy(self) -> Tensor:
        """(b,) energies in eV."""
        return self.prediction.energy


class Relaxation:
    """The map that one optimizer step is, on a batch of structures with one potential.

    Parameters
    ----------
    potential
        What gives forces and stress. Coordinates are float64 whatever its dtype.
    method
        The optimizer.
    structures
        Start, with constraints; not changed.
    cell
        Options of a variable cell; ``None`` for fixed cells.
    skin
        Of the neighbour lists, Å.
    evaluator
        Evaluates the potential where no gradients are taken through it; ``None`` for plain evaluations.

    Raises
    ------
    InputError
        If a structure holds elements the potential does not know, an unsupported constraint, or no cell
        although the cell shall relax; its position in the list is named.
    """

    def __init__(
        self,
        potential: Potential,
        method: Method[Any],
        structures: Sequence[Atoms],
        cell: CellOptions | None = None,
        skin: float = DEFAULT_SKIN,
        evaluator: Evaluator | None = None,
    ) -> None:
        check_elements(potential, structures)
        self.potential = potential
        self._evaluator = evaluator
        self.method = method
        self.coordinates = Coordinates.of(structures, cell, device=potential.device)
        self._graph = MovingGraph(structures, potential.cutoff, skin, potential.device)
        start = torch.cat([torch.tensor(atoms.positions, dtype=torch.float64) for atoms in structures])
        self._start = start.to(potential.device)
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def start(self) -> RelaxationState:
        """The structures as they were given."""
        rows = self.coordinates.rows(self._start)
        return RelaxationState(rows, self.method.start(rows, self.coordinates.layout))

    def checks(self, state: RelaxationState) -> Tensor:
        """(2, b) booleans, where the state is: which structures have exploded, which need a new neighbour list.

        Whoever reads other numbers at every step can read these along with them, and hand them to :meth:`graph`.
        """
        with torch.no_grad():
            positions, cell = self._structure(state)
            exploded = self._explosions(state.coordinates, positions, cell).any()
            return torch.stack([exploded, self._graph.stale(positions, cell)])

    def graph(self, state: RelaxationState, checks: Tensor | None = None) -> tuple[AtomGraph | None, dict[int, str]]:
        """The graph at a state, without gradients, or for each structure that has exploded why.

        Parameters
        ----------
        state
            Coordinates of all structures.
        checks : (2, b) bool
            What :meth:`checks` says of the state, on the CPU, if it has been read already.
        """
        exploded, stale = (self.checks(state).cpu() if checks is None else checks).unbind()
        with torch.no_grad():
            positions, cell = self._structure(state)
            if bool(exploded.any()):
                return None, self._explosions(state.coordinates, positions, cell).reasons()
            return self._graph.update(positions, cell, stale)

    def evaluate(self, state: RelaxationState, graph: AtomGraph, *, create_graph: bool = False) -> Evaluation:
        """Forces at a state; ``graph`` has its edges."""
        positions, cell = self.coordinates.structure(state.coordinates) if create_graph else self._structure(state)
        graph = graph.replace(positions=positions, cell=cell)
        if self._evaluator is not None and not create_graph:
            (prediction,) = self._evaluator(graph)
        else:
            # Of a fixed cell the stress is only for the results, which no gradient is taken of.
            stressed = self.coordinates.cell is not None or not create_graph
            prediction = self.potential.predict(graph, stress=stressed, create_graph=create_graph)
        assert prediction.forces is not None
        stress = None if prediction.stress is None else prediction.stress.double()
        forces = self.coordinates.forces(state.coordinates, prediction.forces.double(), stress)
        with torch.no_grad():
            fmax = self.coordinates.layout.longest(forces)
        return Evaluation(forces, fmax, prediction)

    def move(self, state: RelaxationState, forces: Tensor, active: Tensor | None = None) -> RelaxationState:
        """The state after one step; structures that are not ``active`` (b,) stay where they are."""
        displacement, method = self.method.step(state.method, forces, self.coordinates.layout)
        if active is not None:
            displacement = torch.where(self.coordinates.layout.spread(active), displacement, 0.0)
        return RelaxationState(state.coordinates + displacement, method)

    def select(self, structures: Sequence[int]) -> tuple[Relaxation, Tensor, Tensor]:
        """The map of some structures, the indices of their rows, and their own, both ascending."""
        chosen = copy.copy(self)
        chosen.coordinates, rows, kept = self.coordinates.select(structures)
        chosen._graph = self._graph.select(kept.tolist())
        chosen._start = self._start[rows[rows < self.coordinates.num_atoms]]
        return chosen, rows, kept

    def joined(self, other: Relaxation) -> tuple[Relaxation, Tensor]:
        """The map of the structures of both, and the order of the rows of both, one after the other, in it."""
        both = copy.copy(self)
        both.coordinates, order = self.coordinates.joined(other.coordinates)
        both._graph = self._graph.joined(other._graph)
        both._start = torch.cat([self._start, other._start])
        return both, order

    def _structure(self, state: RelaxationState) -> tuple[Tensor, Tensor]:
        """Positions and cells at a state without gradients, kept for whoever asks again."""
        if self._last is not None and self._last[0] is state.coordinates:
            return self._last[1:]
        positions, cell = self.coordinates.structure(state.coordinates)
        if not state.coordinates.requires_grad:  # whose graph would be kept, too
            self._last = (state.coordinates, positions, cell)
        return positions, cell

    def _explosions(self, rows: Tensor, positions: Tensor, cell: Tensor) -> _Explosions:
        layout = self.coordinates.layout
        owner = layout.owner[: len(positions)]
        zeros = positions.new_zeros(layout.count)
        broken = zeros.index_add(0, owner, (~positions.isfinite().all(dim=1)).to(zeros.dtype))
        moved = (rows[: len(positions)] - self._start).norm(dim=1)
        ratio = torch.ones_like(zeros)
        if self.coordinates.cell is not None:
            ratio = signed_volume(cell) / signed_volume(self.coordinates.cell0)
        return _Explosions(
            finite=(broken == 0) & cell.isfinite().all(dim=2).all(dim=1),
            moved=zeros.scatter_reduce(0, owner, moved, "amax"),
            ratio=ratio,
        )


@dataclass(frozen=True)
class _Explosions:
    """What shows (b,) that a structure has exploded: numbers, the largest displacement in Å, the ratio of volumes."""

    finite: Tensor
    moved: Tensor
    ratio: Tensor

    @property
    def _far(self) -> Tensor:
        return self.moved > LARGEST_DISPLACEMENT

    @property
    def _other_volume(self) -> Tensor:
        return (self.ratio > LARGEST_VOLUME_RATIO) | (self.ratio < 1 / LARGEST_VOLUME_RATIO)

    def any(self) -> Tensor:
        """(b,) booleans."""
        return ~self.finite | self._far | self._other_volume

    def reasons(self) -> dict[int, str]:
        """Why, for each structure that has exploded."""
        reasons = {}
        for index in self.any().nonzero().squeeze(1).tolist():
            if not self.finite[index]:
                reasons[index] = "positions or cell are not finite"
            elif self._other_volume[index]:
                reasons[index] = f"the cell's volume has changed by a factor of {float(self.ratio[index]):.3g}"
            else:
                reasons[index] = f"an atom has moved by {float(self.moved[index]):.3g} Å"
        return reasons


def check_elements(potential: Potential, structures: Sequence[Atoms]) -> None:
    """Raise an :class:`InputError` that names the first structure with an element the potential does not know."""
    for index, atoms in enumerate(structures):
        try:
            potential.check_numbers(atoms.numbers)
        except InputError as error:
            raise InputError(f"structure {index}: {error}") from error
