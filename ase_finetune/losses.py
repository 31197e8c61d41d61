"""Losses and error measures on energy, forces and stress: one definition for training, Fisher and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from ase import units
from torch import Tensor
from torch.nn import functional

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials.base import Prediction

#: 1 eV/Å³ in kbar.
KBAR = 1 / (0.1 * units.GPa)

LossKind = Literal["huber", "mse", "l1"]


@dataclass(frozen=True)
class Loss:
    """What training minimises: a weighted sum of three means.

    Energy per atom in eV/atom, force components in eV/Å, the six stress components in kbar. The
    defaults are those of reEWC (npj Comput. Mater. 12, 26 (2026)).

    Attributes
    ----------
    kind
        ``"huber"``, ``"mse"`` or ``"l1"``.
    huber_delta
        Where the Huber loss turns from quadratic to linear, in the units above.
    energy_weight, forces_weight, stress_weight
        Weights of the three terms; 0 leaves a term out.
    """

    kind: LossKind = "huber"
    huber_delta: float = 0.01
    energy_weight: float = 1.0
    forces_weight: float = 1.0
    stress_weight: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in ("huber", "mse", "l1"):
            raise InputError(f"loss {self.kind!r} is not known; use 'huber', 'mse' or 'l1'")
        if self.kind == "huber" and not self.huber_delta > 0:
            raise InputError(f"huber_delta must be positive, got {self.huber_delta}")
        weights = {"energy": self.energy_weight, "forces": self.forces_weight, "stress": self.stress_weight}
        for name, weight in weights.items():
            if not weight >= 0:
                raise InputError(f"{name}_weight must not be negative, got {weight}")
        if not any(weights.values()):
            raise InputError("all loss weights are 0: there is nothing to train on")

    @property
    def needs_forces(self) -> bool:
        """Whether forces have to be predicted."""
        return self.forces_weight > 0

    @property
    def needs_stress(self) -> bool:
        """Whether the stress has to be predicted."""
        return self.stress_weight > 0

    def __call__(self, prediction: Prediction, graph: AtomGraph, counts: LabelCounts | None = None) -> Tensor:
        """Loss of a batch, a scalar: each term is a mean over all labelled components in the batch.

        With the ``counts`` of a larger batch this is the part of its loss that ``graph`` contributes, so
        a batch can be worked off in pieces whose losses, and gradients, add up to the whole.
        """
        total = prediction.energy.new_zeros(())
        counts = counts or label_counts([graph])
        for weight, term, count in zip(self._weights, _residuals(prediction, graph), counts, strict=True):
            if weight > 0 and term is not None:
                total = total + weight * self._rows(term).sum() / max(1, count)
        return total

    def per_structure(self, prediction: Prediction, graph: AtomGraph) -> Tensor:
        """(b,) loss of each structure as if it were a batch of its own."""
        total = prediction.energy.new_zeros(graph.num_graphs)
        for weight, term in zip(self._weights, _residuals(prediction, graph), strict=True):
            if weight > 0 and term is not None:
                rows = self._rows(term)
                sums = torch.zeros_like(total).index_add(0, term.batch, rows)
                counts = torch.zeros_like(total).index_add(0, term.batch, term.mask.to(rows.dtype))
                total = total + weight * sums / counts.clamp(min=1)
        return total

    def describe(self) -> dict[str, Any]:
        """Definition and units, for files that are only valid with the same loss."""
        return asdict(self) | {"units": "eV/atom, eV/Å, kbar"}

    @property
    def _weights(self) -> tuple[float, float, float]:
        return self.energy_weight, self.forces_weight, self.stress_weight

    def _rows(self, term: _Residual) -> Tensor:
        """Loss of every row, averaged over its components; 0 where the label is missing."""
        return self._pointwise(term.values).mean(dim=1) * term.mask

    def _pointwise(self, residual: Tensor) -> Tensor:
        if self.kind == "huber":
            zeros = torch.zeros_like(residual)
            return functional.huber_loss(residual, zeros, reduction="none", delta=self.huber_delta)
        return residual.square() if self.kind == "mse" else residual.abs()


class LabelCounts(NamedTuple):
    """Labelled rows of a batch: structures with energy, atoms with forces, structures with stress."""

    energy: int
    forces: int
    stress: int


def label_counts(graphs: Sequence[AtomGraph]) -> LabelCounts:
    """Labelled rows over all of ``graphs``."""
    masks = [(graph.energy_mask, graph.forces_mask, graph.stress_mask) for graph in graphs]
    energy, forces, stress = (
        sum(0 if m is None else int(m.sum()) for m in column) for column in zip(*masks, strict=True)
    )
    return LabelCounts(energy, forces, stress)


@dataclass(frozen=True)
class _Residual:
    """Rows of residuals (r, c) with a mask (r,) and the structure (r,) each row belongs to."""

    values: Tensor
    mask: Tensor
    batch: Tensor


def _residuals(prediction: Prediction, graph: AtomGraph) -> tuple[_Residual, _Residual | None, _Residual | None]:
    """Prediction minus label: energy in eV/atom, forces in eV/Å, stress in kbar."""
    if graph.energy is None or graph.forces is None or graph.stress is None:
        raise InputError("the structures carry no labels")
    assert graph.energy_mask is not None
    assert graph.forces_mask is not None
    assert graph.stress_mask is not None
    structures = torch.arange(graph.num_graphs, device=graph.batch.device)
    energy = ((prediction.energy - graph.energy) / graph.num_atoms)[:, None]
    forces = stress = None
    if prediction.forces is not None:
        forces = _Residual(prediction.forces - graph.forces, graph.forces_mask, graph.batch)
    if prediction.stress is not None:
        stress = _Residual((prediction.stress - graph.stress) * KBAR, graph.stress_mask, structures)
    return _Residual(energy, graph.energy_mask, structures), forces, stress


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

    def to_dict(self) -> dict[str, float]:
        """All values by name."""
        return asdict(self)


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
            for name, term in zip(self._absolute, _residuals(prediction, graph), strict=True):
                if term is not None:
                    self._add_residuals(name, term)
            if prediction.forces is not None and graph.forces is not None and graph.forces_mask is not None:
                reference = graph.forces[graph.forces_mask].double()
                self._product += float((prediction.forces[graph.forces_mask].double() * reference).sum())
                self._square += float(reference.square().sum())

    def _add_residuals(self, name: str, term: _Residual) -> None:
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


def measure(predictions: Sequence[Prediction], graphs: Sequence[AtomGraph], loss: Loss | None = None) -> Errors:
    """Errors of single-structure predictions against the labels of their graphs."""
    sums = ErrorSums(loss or Loss())
    for prediction, graph in zip(predictions, graphs, strict=True):
        sums.add(prediction, graph)
    return sums.errors()
