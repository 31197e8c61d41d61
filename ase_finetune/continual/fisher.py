"""Fisher information: how much each parameter matters for what the potential already knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from scipy.linalg import hadamard
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph, collate, edge_counts
from ase_finetune.graphs.sending import send
from ase_finetune.losses import Loss
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.batched import fill_batches, work_off

#: Edges of a batch that shares backward passes.
DEFAULT_FISHER_EDGES = 2500


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
    probes: int | None = None,
    max_edges: int = DEFAULT_FISHER_EDGES,
    seed: int = 0,
    on_structure: Callable[[], object] | None = None,
    processes: Processes = ALONE,
) -> FisherInformation:
    """Mean over labelled structures of the squared gradient of the loss of one structure.

    F_i = (1/N) sum_n (dL_n/dtheta_i)^2, as published with reEWC (npj Comput. Mater. 12, 26 (2026)):
    batch size 1, the full training loss. That takes a backward pass per structure. With ``probes``, the losses
    of a batch are added up with random signs s_n instead: E[(sum_n s_n g_n)^2] = sum_n g_n^2, so one backward
    pass per probe gives an unbiased estimate for the whole batch. The signs of several probes are rows of a
    Hadamard matrix, whose cross terms cancel sooner than those of independent signs; with as many probes as
    structures (a power of two) none is left.

    Parameters
    ----------
    potential
        Its trainable parameters are taken.
    graphs
        N labelled structures.
    loss
        The loss fine-tuning will use; the published one by default.
    probes
        Backward passes per batch; ``None`` for the exact sum.
    max_edges
        Bound of one batch of the estimate; a smaller one gives less noise and takes longer.
    seed
        Of the signs.
    on_structure
        Called after each structure, for a progress bar.
    processes
        Share the work; all get the result.

    Raises
    ------
    InputError
        If there are no structures, they carry no labels, or ``probes`` is not positive.
    """
    if probes is not None and probes < 1:
        raise InputError(f"probes must be positive, got {probes}")
    loss = loss or Loss()
    sums = _FisherSums(potential)

    def work(indices: list[int]) -> None:
        batch = collate([graphs[index] for index in indices]).to(potential.device)
        prediction = potential.predict(batch, forces=loss.needs_forces, stress=loss.needs_stress, create_graph=True)
        losses = loss.per_structure(prediction, batch)
        generator = torch.Generator().manual_seed(_seed(seed, indices[0]))
        signs = _signs(len(indices), probes or 1, generator)
        sums.add([losses @ send(row.to(losses.dtype), losses.device) for row in signs])
        _count(on_structure, len(indices))

    if probes is None:
        batches = [[index] for index in processes.share(edge_counts(graphs))]
    else:
        batches = _own_batches(graphs, max_edges, processes)
    work_off(work, batches, processes)
    how = {"kind": "empirical", "loss": loss.describe()}
    return sums.mean(len(graphs), how if probes is None else how | {"probes": probes, "seed": seed}, processes)


def gaussian_fisher(
    potential: Potential,
    graphs: Sequence[AtomGraph],
    *,
    energy_scale: float = 0.02,
    forces_scale: float = 0.1,
    draws: int = 1,
    max_edges: int = DEFAULT_FISHER_EDGES,
    seed: int = 0,
    on_structure: Callable[[], object] | None = None,
    processes: Processes = ALONE,
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
    processes
        Share the work; all get the result.

    Raises
    ------
    InputError
        If there are no structures, or a scale or ``draws`` is not positive.
    """
    if energy_scale <= 0 or forces_scale <= 0 or draws < 1:
        raise InputError("energy_scale, forces_scale and draws of the Fisher information must be positive")
    sums = _FisherSums(potential)

    def work(indices: list[int]) -> None:
        batch = collate([graphs[index].without_labels() for index in indices]).to(potential.device)
        prediction = potential.predict(batch, stress=False, create_graph=True)
        assert prediction.forces is not None
        sizes = batch.num_atoms.to(prediction.energy.dtype)
        energy = prediction.energy / (sizes * energy_scale)
        forces = prediction.forces / (forces_scale * (3 * sizes[batch.batch, None]).sqrt())
        generator = torch.Generator().manual_seed(_seed(seed, indices[0]))
        sums.add(
            [
                (_normal_like(energy, generator) * energy).sum() + (_normal_like(forces, generator) * forces).sum()
                for _ in range(draws)
            ]
        )
        _count(on_structure, draws * len(indices))

    work_off(work, _own_batches(graphs, max_edges, processes), processes)
    how = {"kind": "gaussian", "energy_scale": energy_scale, "forces_scale": forces_scale, "draws": draws, "seed": seed}
    return sums.mean(len(graphs), how, processes)


class _FisherSums:
    """Sums of squared gradients over the trainable parameters."""

    def __init__(self, potential: Potential) -> None:
        named = list(potential.native_parameters(trainable_only=True))
        if not named:
            raise InputError("the potential has no trainable parameters")
        self._names = [name for name, _ in named]
        self._parameters = [parameter for _, parameter in named]
        self._sums = [torch.zeros_like(parameter) for parameter in self._parameters]

    def add(self, scalars: Sequence[Tensor]) -> None:
        """Add the mean of the squared gradients of some functions of one graph; nothing if one of them fails."""
        squares = [torch.zeros_like(total) for total in self._sums]
        for left, scalar in zip(reversed(range(len(scalars))), scalars, strict=True):
            gradients = torch.autograd.grad(scalar, self._parameters, allow_unused=True, retain_graph=left > 0)
            for square, gradient in zip(squares, gradients, strict=True):
                if gradient is not None:
                    square.addcmul_(gradient, gradient)
        torch._foreach_add_(self._sums, squares, alpha=1 / len(scalars))

    def mean(self, count: int, metadata: dict[str, Any], processes: Processes) -> FisherInformation:
        """The sums over all processes, divided by the number of structures."""
        if count == 0:
            raise InputError("the Fisher information needs at least one structure")
        processes.sum_(self._sums)
        values = {name: (total / count).cpu() for name, total in zip(self._names, self._sums, strict=True)}
        return FisherInformation(values, metadata | {"structures": count})


def _own_batches(graphs: Sequence[AtomGraph], max_edges: int, processes: Processes) -> list[list[int]]:
    """The batches this process works on, of batches that are the same however many processes there are."""
    edges = edge_counts(graphs)
    batches = fill_batches(edges, max_edges)
    return [batches[k] for k in processes.share([sum(edges[index] for index in batch) for batch in batches])]


def _signs(count: int, probes: int, generator: torch.Generator) -> list[Tensor]:
    """Rows of a Hadamard matrix, in random order and with random signs of its columns.

    No more than the matrix has that is just large enough: all of them are exact, and those of a larger one are not.
    """
    size = 1 << (count - 1).bit_length()
    rows = torch.from_numpy(hadamard(size))[torch.randperm(size, generator=generator)[:probes], :count]
    return list(rows * (2 * torch.randint(2, (count,), generator=generator) - 1))


def _seed(seed: int, first: int) -> int:
    # Of a batch by its first structure, so that several processes draw as one would.
    return 1_000_003 * seed + first


def _count(on_structure: Callable[[], object] | None, count: int) -> None:
    for _ in range(count if on_structure is not None else 0):
        assert on_structure is not None
        on_structure()


def _normal_like(values: Tensor, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU, so that a seed means the same on every device.
    return send(torch.randn(values.shape, generator=generator, dtype=values.dtype), values.device)
