"""Fisher information: how much each parameter matters for what the potential already knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.losses import Loss
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.batched import batches_by_edges


@dataclass(frozen=True)
class FisherInformation:
    """Diagonal Fisher information of a potential's trainable parameters.

    Attributes
    ----------
    values
        Tensor per parameter, under the native model's names, not negative.
    metadata
        How it was made: kind, number of structures, loss and units, hashes of model and data.
    """

    values: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean over all parameters."""
        count = sum(value.numel() for value in self.values.values())
        return sum(float(value.double().sum()) for value in self.values.values()) / count

    def normalized(self) -> FisherInformation:
        """Divided by its mean, so that lambda has a scale that does not depend on data or loss.

        Raises
        ------
        InputError
            If it is zero everywhere, as the empirical Fisher of a model on its own predictions is.
        """
        mean = self.mean
        if mean == 0:
            raise InputError(
                "the Fisher information is zero everywhere: on labels made by the model itself the residuals vanish; "
                "use the label-free form (fisher='label-free')"
            )
        values = {name: value / mean for name, value in self.values.items()}
        return replace(self, values=values, metadata=self.metadata | {"divided_by_mean": mean})

    def shares(self) -> dict[str, float]:
        """Share of each parameter tensor in the total, largest first."""
        sums = {name: float(value.double().sum()) for name, value in self.values.items()}
        total = sum(sums.values()) or 1.0
        return {name: value / total for name, value in sorted(sums.items(), key=lambda item: -item[1])}


def empirical_fisher(
    potential: Potential,
    graphs: Sequence[AtomGraph],
    loss: Loss | None = None,
    *,
    on_structure: Callable[[], object] | None = None,
) -> FisherInformation:
    """Mean over labelled structures of the squared gradient of the loss of one structure.

    F_i = (1/N) sum_n (dL_n/dtheta_i)^2, as published with reEWC (npj Comput. Mater. 12, 26 (2026)):
    batch size 1, the full training loss.

    Parameters
    ----------
    potential
        Its trainable parameters are taken.
    graphs
        N labelled structures.
    loss
        The loss fine-tuning will use; the published one by default.
    on_structure
        Called after each structure, for a progress bar.

    Raises
    ------
    InputError
        If there are no structures, or they carry no labels.
    """
    loss = loss or Loss()
    sums = _FisherSums(potential)
    for graph in graphs:
        placed = graph.to(potential.device)
        prediction = potential.predict(placed, forces=loss.needs_forces, stress=loss.needs_stress, create_graph=True)
        sums.add(loss(prediction, placed))
        if on_structure is not None:
            on_structure()
    return sums.mean(len(graphs), {"kind": "empirical", "loss": loss.describe()})


def gaussian_fisher(
    potential: Potential,
    graphs: Sequence[AtomGraph],
    *,
    energy_scale: float = 0.02,
    forces_scale: float = 0.1,
    draws: int = 1,
    max_edges: int = 4000,
    seed: int = 0,
    on_structure: Callable[[], object] | None = None,
) -> FisherInformation:
    """Fisher information of a Gaussian likelihood, which needs no labels.

    With predictions y_k of standard deviation s_k the Fisher information is sum_k (dy_k/dtheta_i)^2/s_k^2.
    A random combination q = sum_k xi_k y_k/s_k with xi ~ N(0, 1) has E[(dq/dtheta_i)^2] equal to it, so
    one backward pass per draw is enough. Energies enter per atom, forces with 1/sqrt(3 n), so that
    large structures do not outweigh small ones. Draws of different structures are independent, so a whole
    batch shares one backward pass without bias.

    Parameters
    ----------
    potential
        Its trainable parameters are taken.
    graphs
        Structures; labels are not used.
    energy_scale, forces_scale
        Standard deviations: eV/atom and eV/Å.
    draws
        Random combinations per structure.
    max_edges
        Bound of one batch; a smaller one gives more independent draws and takes longer.
    seed
        Of the random combinations.
    on_structure
        Called once per structure and draw, for a progress bar.

    Raises
    ------
    InputError
        If there are no structures, or a scale or ``draws`` is not positive.
    """
    if energy_scale <= 0 or forces_scale <= 0 or draws < 1:
        raise InputError("energy_scale, forces_scale and draws of the Fisher information must be positive")
    generator = torch.Generator().manual_seed(seed)
    sums = _FisherSums(potential)
    batches = batches_by_edges(graphs, max_edges) if graphs else []
    for indices in batches * draws:
        batch = collate([graphs[index].without_labels() for index in indices]).to(potential.device)
        prediction = potential.predict(batch, stress=False, create_graph=True)
        assert prediction.forces is not None
        sizes = batch.num_atoms.to(prediction.energy.dtype)
        energy = prediction.energy / (sizes * energy_scale)
        forces = prediction.forces / (forces_scale * (3 * sizes[batch.batch, None]).sqrt())
        combination = (_normal_like(energy, generator) * energy).sum() + (
            _normal_like(forces, generator) * forces
        ).sum()
        sums.add(combination)
        for _ in indices:
            if on_structure is not None:
                on_structure()
    return sums.mean(
        len(graphs) * draws,
        {"kind": "gaussian", "energy_scale": energy_scale, "forces_scale": forces_scale, "draws": draws, "seed": seed},
    )


class _FisherSums:
    """Sums of squared gradients over the trainable parameters."""

    def __init__(self, potential: Potential) -> None:
        named = list(potential.native_parameters(trainable_only=True))
        if not named:
            raise InputError("the potential has no trainable parameters")
        self._names = [name for name, _ in named]
        self._parameters = [parameter for _, parameter in named]
        self._sums = [torch.zeros_like(parameter) for parameter in self._parameters]

    def add(self, scalar: Tensor) -> None:
        gradients = torch.autograd.grad(scalar, self._parameters, allow_unused=True)
        for total, gradient in zip(self._sums, gradients, strict=True):
            if gradient is not None:
                total.addcmul_(gradient, gradient)

    def mean(self, count: int, metadata: dict[str, Any]) -> FisherInformation:
        if count == 0:
            raise InputError("the Fisher information needs at least one structure")
        values = {name: (total / count).cpu() for name, total in zip(self._names, self._sums, strict=True)}
        return FisherInformation(values, metadata | {"structures": count})


def _normal_like(values: Tensor, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU, so that a seed means the same on every device.
    return torch.randn(values.shape, generator=generator, dtype=values.dtype).to(values.device)
