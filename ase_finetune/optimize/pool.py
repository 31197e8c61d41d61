"""A batch of relaxations that finished structures leave and waiting ones join."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor

from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.errors import InputError
from ase_finetune.graphs import neighbor_list
from ase_finetune.optimize.cell import CellOptions
from ase_finetune.optimize.method import Method
from ase_finetune.optimize.relaxation import Evaluation, Relaxation, RelaxationState
from ase_finetune.potentials.base import Prediction
from ase_finetune.potentials.batched import split_prediction
from ase_finetune.potentials.capture import Evaluator

#: Edges evaluated at once when nothing is said: what is fastest on a CPU, what fits on a GPU.
DEFAULT_MAX_EDGES = {"cpu": 4000, "cuda": 200_000}


@dataclass(frozen=True)
class Relaxed:
    """How the relaxation of one structure ended.

    Attributes
    ----------
    atoms
        The last structure that could be evaluated; unless the relaxation failed with its energy, forces and
        stress.
    converged
        Whether the largest force, on atoms and cell, is below ``fmax``.
    steps
        Steps made.
    fmax
        Largest force on an atom or on the cell's coordinates, eV/Å.
    failure
        Why the relaxation was given up (it exploded, cannot be evaluated), or ``None``.
    """

    atoms: Atoms
    converged: bool
    steps: int
    fmax: float
    failure: str | None = None


@dataclass
class _Member:
    """A structure that is being relaxed: its place in the list, where it began (or ended), edges at first."""

    index: int
    atoms: Atoms
    edges: int = 0
    steps: int = 0
    fmax: float = float("inf")


class Pool:
    """Relaxes structures in one batch whose number of edges is bounded.

    Parameters
    ----------
    calc
        Its potential gives the forces.
    method
        The optimizer.
    cell
        Options of variable cells, or ``None``.
    fmax
        eV/Å.
    steps
        Of each structure, at most.
    skin
        Å.
    max_edges
        Bound of the batch; ``None`` for the default of the device.
    accelerate
        As of :class:`Evaluator`.
    """

    def __init__(
        self,
        calc: FinetunedCalculator,
        method: Method[Any],
        cell: CellOptions | None,
        *,
        fmax: float,
        steps: int,
        skin: float,
        max_edges: int | None,
        accelerate: str,
    ) -> None:
        if max_edges is not None and max_edges < 1:
            raise InputError(f"max_edges must be positive, got {max_edges}")
        self._calc, self._method, self._cell, self._skin = calc, method, cell, skin
        self._fmax, self._steps = fmax, steps
        self._max_edges = max_edges or DEFAULT_MAX_EDGES.get(calc.potential.device.type, 4000)
        self._evaluator = Evaluator([calc.potential], accelerate)
        self._waiting: list[_Member] = []
        self._members: list[_Member] = []
        self._relaxation: Relaxation | None = None
        self._state: RelaxationState | None = None
        # Rows of coordinates at which the structures were evaluated last, so that one that explodes is not lost.
        self._evaluated: Tensor | None = None
        # What Relaxation.checks says of the state, if it has been read.
        self._checks: Tensor | None = None
        self._results: dict[int, Relaxed] = {}

    def run(self, structures: Sequence[Atoms], on_finished: Callable[[], object]) -> dict[int, Relaxed]:
        """Relax all structures; ``on_finished`` is called after each. Results by position in the list."""
        self._results = {}
        for index, atoms in enumerate(structures):
            member = _Member(index, atoms.copy())
            try:
                member.edges = neighbor_list(atoms, self._calc.potential.cutoff)[0].shape[1]
                self._waiting.append(member)
            except InputError as error:
                self._fail(member, str(error))
        # Large structures first, so that no single one is left over at the end.
        self._waiting.sort(key=lambda member: member.edges)
        counted = 0
        with torch.no_grad():
            while self._waiting or self._members:
                self._step()
                for _ in range(len(self._results) - counted):
                    on_finished()
                counted = len(self._results)
        return self._results

    def _step(self) -> None:
        """Evaluate the batch, let those that are done leave, and move the others."""
        self._admit()
        relaxation, state = self._relaxation, self._state
        assert relaxation is not None
        assert state is not None
        graph, failures = relaxation.graph(state, self._checks)
        if graph is None:
            self._give_up(failures)
            return
        evaluation = relaxation.evaluate(state, graph)
        moved = relaxation.move(state, evaluation.forces)
        # All that is read in a step: a GPU works on while nobody asks it for numbers.
        read = torch.cat([evaluation.fmax[None], relaxation.checks(moved).to(evaluation.fmax.dtype)]).cpu()
        broken = {int(k): "forces are not finite" for k in (~read[0].isfinite()).nonzero()}
        if broken:
            self._give_up(broken)
            return
        self._state, self._checks, self._evaluated = moved, read[1:].bool(), state.coordinates
        fmax = read[0].tolist()
        for member, force in zip(self._members, fmax, strict=True):
            member.fmax = force
        done = [k for k, member in enumerate(self._members) if fmax[k] < self._fmax or member.steps >= self._steps]
        if done:
            self._finish(done, evaluation)
        for member in self._members:
            member.steps += 1

    def _admit(self) -> None:
        """Let waiting structures join while there is room; the first one always."""
        joining: list[_Member] = []
        edges = sum(member.edges for member in self._members)
        while self._waiting and (edges == 0 or edges + self._waiting[-1].edges <= self._max_edges):
            joining.append(self._waiting.pop())
            edges += max(1, joining[-1].edges)
        if not joining:
            return
        atoms = [member.atoms for member in joining]
        added = Relaxation(self._calc.potential, self._method, atoms, self._cell, self._skin, self._evaluator)
        start = added.start()
        if self._relaxation is None or self._state is None or self._evaluated is None:
            self._relaxation, self._state, self._evaluated = added, start, start.coordinates
        else:
            self._relaxation, order = self._relaxation.joined(added)
            self._state = self._state.joined(start, order)
            self._evaluated = torch.cat([self._evaluated, start.coordinates])[order]
        self._checks = None
        self._members += joining

    def _bring_back(self, indices: Sequence[int]) -> None:
        """Give members the structures at which they were evaluated last.

        In float64, not rounded to the potential's dtype, so that what is fixed stays where it was.
        """
        assert self._relaxation is not None
        assert self._evaluated is not None
        rows, cells = self._relaxation.coordinates.structure(self._evaluated)
        positions, cells = rows.cpu().split([len(member.atoms) for member in self._members]), cells.cpu()
        for k in indices:
            atoms = self._members[k].atoms
            atoms.set_cell(cells[k].numpy())
            atoms.set_positions(positions[k].numpy(), apply_constraint=False)

    def _finish(self, done: list[int], evaluation: Evaluation) -> None:
        predictions = split_prediction(evaluation.prediction, [len(member.atoms) for member in self._members])
        self._bring_back(done)
        for k in done:
            member = self._members[k]
            self._results[member.index] = self._result(member, predictions[k])
        self._drop(done)

    def _result(self, member: _Member, prediction: Prediction) -> Relaxed:
        atoms = member.atoms
        values = self._calc.results_of(prediction, atoms)
        atoms.calc = SinglePointCalculator(atoms, **values)
        return Relaxed(atoms, member.fmax < self._fmax, member.steps, member.fmax)

    def _give_up(self, failures: dict[int, str]) -> None:
        self._bring_back([k for k in failures if self._members[k].fmax < float("inf")])
        for k, reason in failures.items():
            self._fail(self._members[k], reason)
        self._drop(list(failures))

    def _fail(self, member: _Member, reason: str) -> None:
        self._results[member.index] = Relaxed(member.atoms, False, member.steps, member.fmax, reason)

    def _drop(self, indices: list[int]) -> None:
        assert self._relaxation is not None
        assert self._state is not None
        assert self._evaluated is not None
        left = [k for k in range(len(self._members)) if k not in set(indices)]
        self._members = [self._members[k] for k in left]
        if not left:
            self._relaxation = self._state = self._evaluated = self._checks = None
            return
        self._relaxation, rows, kept = self._relaxation.select(left)
        self._state = self._state.select(rows, kept)
        self._evaluated = self._evaluated[rows]
        self._checks = None if self._checks is None else self._checks[:, left]
