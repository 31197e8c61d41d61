"""The loss on energy, forces and stress: one definition for training and Fisher information."""

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
from ase_finetune.options import check_types
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
        check_types(self, "loss.")
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
        for weight, term, count in zip(self._weights, residuals(prediction, graph), counts, strict=True):
            if weight > 0 and term is not None:
                total = total + weight * self._rows(term).sum() / max(1, count)
        return total

    def per_structure(self, prediction: Prediction, graph: AtomGraph) -> Tensor:
        """(b,) loss of each structure as if it were a batch of its own.

        Parameters
        ----------
        prediction
            For b structures.
        graph
            The same structures, with labels.
        """
        return self.of_residuals(residuals(prediction, graph), graph.num_graphs)

    def of_residuals(self, terms: Residuals, count: int) -> Tensor:
        """As :meth:`per_structure`, of the residuals of ``count`` structures that are known already.

        Parameters
        ----------
        terms
            As :func:`residuals` gives them.
        count
            Number of structures b.
        """
        total = terms[0].values.new_zeros(count)
        for weight, term in zip(self._weights, terms, strict=True):
            if weight > 0 and term is not None:
                rows = self._rows(term)
                sums = torch.zeros_like(total).index_add(0, term.batch, rows)
                counts = torch.zeros_like(total).index_add(0, term.batch, term.mask.to(rows.dtype))
                total = total + weight * sums / counts.clamp(min=1)
        return total

    def of_energies(self, residuals: Tensor) -> Tensor:
        """(n,) what energy residuals of n structures, in eV/atom, contribute to :meth:`per_structure`.

        Parameters
        ----------
        residuals : (n,)
            Prediction minus label, eV/atom.
        """
        return self.energy_weight * self._pointwise(residuals)

    def describe(self) -> dict[str, Any]:
        """Definition and units, for files that are only valid with the same loss."""
        return asdict(self) | {"units": "eV/atom, eV/Å, kbar"}

    @property
    def _weights(self) -> tuple[float, float, float]:
        return self.energy_weight, self.forces_weight, self.stress_weight

    def _rows(self, term: Residual) -> Tensor:
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
    if not graphs:
        return LabelCounts(0, 0, 0)
    masks = [(graph.energy_mask, graph.forces_mask, graph.stress_mask) for graph in graphs]
    energy, forces, stress = (
        sum(0 if m is None else int(m.sum()) for m in column) for column in zip(*masks, strict=True)
    )
    return LabelCounts(energy, forces, stress)


@dataclass(frozen=True)
class Residual:
    """Rows of residuals (r, c) with a mask (r,) and the structure (r,) each row belongs to."""

    values: Tensor
    mask: Tensor
    batch: Tensor


#: Of energies, forces and stresses; ``None`` where they are not predicted.
Residuals = tuple[Residual, Residual | None, Residual | None]


def residuals(prediction: Prediction, graph: AtomGraph) -> Residuals:
    """Prediction minus label: energy in eV/atom, forces in eV/Å, stress in kbar."""
    if graph.energy is None or graph.forces is None or graph.stress is None:
        raise InputError("the structures carry no labels")
    assert graph.energy_mask is not None
    assert graph.forces_mask is not None
    assert graph.stress_mask is not None
    structures = torch.arange(graph.num_graphs, device=graph.batch.device)
    # Labels are float64: the difference to one is rounded, not the label.
    dtype = prediction.energy.dtype
    energy = ((prediction.energy - graph.energy) / graph.num_atoms)[:, None].to(dtype)
    forces = stress = None
    if prediction.forces is not None:
        forces = Residual((prediction.forces - graph.forces).to(dtype), graph.forces_mask, graph.batch)
    if prediction.stress is not None:
        stress = Residual(((prediction.stress - graph.stress) * KBAR).to(dtype), graph.stress_mask, structures)
    return Residual(energy, graph.energy_mask, structures), forces, stress
