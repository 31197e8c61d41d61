"""Error measures on energy, forces and stress: one definition for training, reports and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.losses import Loss, Residual, residuals
from ase_finetune.potentials.base import Potential, Prediction
from ase_finetune.potentials.batched import batches_by_edges


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
    """

    loss: float
    energy_mae: float
    energy_rmse: float
    forces_mae: float
    forces_rmse: float
    stress_mae: float
    stress_rmse: float
    slope: float

    def to_dict(self) -> dict[str, float | None]:
        """All values by name; ``None`` instead of ``nan``, which JSON does not know."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


class ErrorSums:
    """Running sums behind :class:`Errors`, one batch at a time."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self._absolute: dict[str, list[float]] = {name: [0.0, 0.0, 0.0] for name in ("energy", "forces", "stress")}
        self._loss_sum, self._structures = 0.0, 0
        self._product, self._square = 0.0, 0.0

    def add(self, prediction: Prediction, graph: AtomGraph) -> None:
        """Count a batch; prediction and labels on one device."""
        with torch.no_grad():
            self._loss_sum += float(self._loss.per_structure(prediction, graph).sum())
            self._structures += graph.num_graphs
            for name, term in zip(self._absolute, residuals(prediction, graph), strict=True):
                if term is not None:
                    self._add_residuals(name, term)
            if prediction.forces is not None and graph.forces is not None and graph.forces_mask is not None:
                reference = graph.forces[graph.forces_mask].double()
                self._product += float((prediction.forces[graph.forces_mask].double() * reference).sum())
                self._square += float(reference.square().sum())

    def _add_residuals(self, name: str, term: Residual) -> None:
        values = term.values[term.mask].double()
        sums = self._absolute[name]
        sums[0] += float(values.abs().sum())
        sums[1] += float(values.square().sum())
        sums[2] += values.numel()

    def errors(self) -> Errors:
        """The errors over all batches so far."""
        measures: dict[str, float] = {}
        for name, unit in (("energy", 1e3), ("forces", 1e3), ("stress", 1.0)):
            absolute, square, count = self._absolute[name]
            measures[f"{name}_mae"] = unit * absolute / count if count else float("nan")
            measures[f"{name}_rmse"] = unit * (square / count) ** 0.5 if count else float("nan")
        return Errors(
            loss=self._loss_sum / self._structures if self._structures else float("nan"),
            slope=self._product / self._square if self._square > 0 else float("nan"),
            **measures,
        )


def evaluate(
    potential: Potential,
    graphs: Sequence[AtomGraph],
    loss: Loss | None = None,
    *,
    on_structure: Callable[[], object] | None = None,
) -> Errors | None:
    """Errors of a potential on labelled graphs in its dtype; ``None`` where there are no graphs."""
    if not graphs:
        return None
    sums = ErrorSums(loss or Loss())
    for indices in batches_by_edges(graphs):
        batch = collate([graphs[index] for index in indices]).to(potential.device)
        with torch.no_grad():
            sums.add(potential.predict(batch), batch)
        for _ in indices:
            if on_structure is not None:
                on_structure()
    return sums.errors()


def measure(predictions: Sequence[Prediction], graphs: Sequence[AtomGraph], loss: Loss | None = None) -> Errors:
    """Errors of single-structure predictions against the labels of their graphs."""
    sums = ErrorSums(loss or Loss())
    for prediction, graph in zip(predictions, graphs, strict=True):
        sums.add(prediction, graph)
    return sums.errors()
