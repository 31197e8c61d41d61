"""Error measures on energy, forces and stress: one definition for training, reports and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.losses import Loss, residuals
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.base import Potential, Prediction
from ase_finetune.potentials.batched import DEFAULT_MAX_EDGES, shared_batches, work_off


@dataclass(frozen=True)
class Errors:
    """Errors over a set of structures; ``nan`` where no labels or predictions were there.

    Attributes
    ----------
    loss
        Mean over the structures of the training loss.
    energy_mae, energy_rmse
        meV/atom.
    forces_mae, forces_rmse
        Components, meV/Å.
    stress_mae, stress_rmse
        Components, kbar.
    slope
        Softening scale: slope of predicted on reference force components through the origin; 1 is
        right, below 1 the potential is too soft.
    losses
        Training loss of each structure, in their order, where it is kept.
    """

    loss: float
    energy_mae: float
    energy_rmse: float
    forces_mae: float
    forces_rmse: float
    stress_mae: float
    stress_rmse: float
    slope: float
    losses: Sequence[float] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, float | None]:
        """All values over the set by name; ``None`` instead of ``nan``, which JSON does not know."""
        values = {name: value for name, value in asdict(self).items() if name != "losses"}
        return {name: None if math.isnan(value) else value for name, value in values.items()}


class ErrorSums:
    """Running sums behind :class:`Errors`, one batch at a time.

    They stay on the device of the predictions: reading a number from a GPU makes the program wait for it.
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self._structures = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, prediction: Prediction, graph: AtomGraph) -> Tensor:
        """Count a batch of b structures, prediction and labels on one device; returns the loss of each, (b,)."""
        sums: dict[str, Tensor] = {}
        with torch.no_grad():
            terms = residuals(prediction, graph)
            losses = self._loss.of_residuals(terms, graph.num_graphs)
            sums["loss"] = losses.sum(dtype=torch.float64)
            for name, term in zip(("energy", "forces", "stress"), terms, strict=True):
                if term is not None:
                    rows = torch.where(term.mask[:, None], term.values.double(), 0.0)
                    sums[f"{name}_absolute"] = rows.abs().sum()
                    sums[f"{name}_square"] = rows.square().sum()
                    sums[f"{name}_count"] = term.mask.sum(dtype=torch.float64) * rows.shape[1]
            if prediction.forces is not None and graph.forces is not None and graph.forces_mask is not None:
                reference = torch.where(graph.forces_mask[:, None], graph.forces.double(), 0.0)
                sums["product"] = (prediction.forces.double() * reference).sum()
                sums["square"] = reference.square().sum()
        self._add(sums, graph.num_graphs)
        return losses

    def add_energies(self, residuals: Tensor) -> None:
        """Count (n,) energy residuals, in eV/atom, of structures that were counted without their energies."""
        values = residuals.double()
        sums = {"loss": self._loss.of_energies(values).sum(), "energy_absolute": values.abs().sum()}
        sums |= {"energy_square": values.square().sum(), "energy_count": torch.ones_like(values).sum()}
        self._add(sums, structures=0)

    def _add(self, sums: dict[str, Tensor], structures: int) -> None:
        """All of them or none: memory may have run out before."""
        sums = {name: self._sums[name] + value if name in self._sums else value for name, value in sums.items()}
        self._sums |= sums
        self._structures += structures

    def state(self) -> dict[str, float]:
        """The sums, JSON-able."""
        return {"structures": self._structures, **self._read()}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Add what :meth:`state` gave."""
        sums = {name: torch.tensor(float(value), dtype=torch.float64) for name, value in state.items()}
        self._add(sums, structures=int(sums.pop("structures")))

    def errors(self, processes: Processes = ALONE) -> Errors:
        """The errors over all batches so far, of all processes."""
        found = self._read()
        totals = processes.total([float(self._structures), *(found.get(name, 0.0) for name in _SUMS)])
        structures, sums = totals[0], dict(zip(_SUMS, totals[1:], strict=True))
        measures: dict[str, Any] = {}
        for name, unit in (("energy", 1e3), ("forces", 1e3), ("stress", 1.0)):
            count = sums[f"{name}_count"]
            measures[f"{name}_mae"] = unit * sums[f"{name}_absolute"] / count if count else float("nan")
            measures[f"{name}_rmse"] = unit * (sums[f"{name}_square"] / count) ** 0.5 if count else float("nan")
        return Errors(
            loss=sums["loss"] / structures if structures else float("nan"),
            slope=sums["product"] / sums["square"] if sums["square"] > 0 else float("nan"),
            **measures,
        )

    def _read(self) -> dict[str, float]:
        """The sums by name, all read at once."""
        values = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        return dict(zip(self._sums, values, strict=True))


_SUMS = (
    "loss",
    *(f"{name}_{what}" for name in ("energy", "forces", "stress") for what in ("absolute", "square", "count")),
    "product",
    "square",
)


def evaluate(
    potential: Potential,
    graphs: Sequence[AtomGraph],
    loss: Loss | None = None,
    *,
    max_edges: int = DEFAULT_MAX_EDGES,
    on_structure: Callable[[], object] | None = None,
    processes: Processes = ALONE,
) -> Errors | None:
    """Errors of a potential on labelled graphs; ``None`` where there are no graphs.

    A batch has at most ``max_edges`` edges, and is halved if it does not fit into memory. Processes share the work, and
    all get the errors of the whole.
    """
    if not len(graphs):
        return None
    sums = ErrorSums(loss or Loss())
    evaluated: list[int] = []
    losses: list[Tensor] = []

    def work(indices: list[int]) -> None:
        batch = collate([graphs[index] for index in indices]).to(potential.device)
        with torch.no_grad():
            prediction = potential.predict(batch)
        losses.append(sums.add(prediction, batch))
        evaluated.extend(indices)
        for _ in indices:
            if on_structure is not None:
                on_structure()

    work_off(work, shared_batches(graphs, max_edges, processes), processes)
    # Read once, when all batches are on their way: a GPU has the next one in hand while the last one is put together.
    own = list(zip(evaluated, torch.cat(losses).tolist() if losses else [], strict=True))
    every = sorted(item for part in processes.gather(own) for item in part)
    return replace(sums.errors(processes), losses=tuple(loss for _, loss in every))


def measure(predictions: Sequence[Prediction], graphs: Sequence[AtomGraph], loss: Loss | None = None) -> Errors:
    """Errors of single-structure predictions against the labels of their graphs."""
    sums = ErrorSums(loss or Loss())
    for prediction, graph in zip(predictions, graphs, strict=True):
        sums.add(prediction, graph)
    return sums.errors()
