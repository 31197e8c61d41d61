"""The one interface over all potentials, and forces and stress for every backend."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph, Edges


@dataclass(frozen=True)
class Prediction:
    """What a potential says about a batch of b structures with n atoms.

    Attributes
    ----------
    energies : (n,)
        Per-atom energies, eV.
    energy : (b,)
        Total energies, eV.
    forces : (n, 3) or None
        eV/Å.
    stress : (b, 6) or None
        eV/Å³, ASE's sign and Voigt order xx, yy, zz, yz, xz, xy; 0 where the cell has no volume.
    """

    energies: Tensor
    energy: Tensor
    forces: Tensor | None = None
    stress: Tensor | None = None

    def detach(self) -> Prediction:
        """The same numbers without their graph."""
        forces, stress = (None if value is None else value.detach() for value in (self.forces, self.stress))
        return Prediction(self.energies.detach(), self.energy.detach(), forces, stress)


def on_host(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The same predictions on the CPU, detached; from a GPU in one copy of all.

    Parameters
    ----------
    predictions
        On one device, in one floating-point type.
    """
    predictions = [prediction.detach() for prediction in predictions]
    parts = [part for each in predictions for part in (each.energies, each.energy, each.forces, each.stress)]
    present = [part for part in parts if part is not None]
    if present[0].device.type == "cpu":
        return predictions
    packed = torch.cat([part.reshape(-1) for part in present]).cpu()
    pieces = iter(packed.split([part.numel() for part in present]))
    moved = [None if part is None else next(pieces).view(part.shape) for part in parts]
    return [Prediction(*moved[start : start + 4]) for start in range(0, len(moved), 4)]  # type: ignore[arg-type]


class Potential(nn.Module, ABC):
    """A differentiable interatomic potential: per-atom energies as a function of edge vectors.

    A backend is one subclass: it wraps a native module and implements :meth:`atomic_energies`,
    :meth:`architecture`, :meth:`from_architecture`, :meth:`shift_energies` and :meth:`save_native`.
    Everything else, forces and stress included, is written here once.

    Attributes
    ----------
    backend
        Name under which saved files find the class again.
    native
        The wrapped module. Parameter names are the native model's own, so files of other tools that
        are keyed by them (Fisher information, checkpoints) fit.
    cutoff
        Radius in Å.
    numbers
        Atomic numbers the model knows, ascending.
    heads
        Names of the model's heads or modalities; empty for models with one output.
    head
        The one in use.
    """

    backend: ClassVar[str]
    native: nn.Module
    cutoff: float
    numbers: tuple[int, ...]
    heads: tuple[str, ...] = ()
    head: str | None = None

    @property
    def several_orders(self) -> bool:
        """Whether other versions of the backend order weights differently under the same names."""
        return False

    @abstractmethod
    def atomic_energies(self, graph: AtomGraph, edges: Edges) -> Tensor:
        """Per-atom energies from edge vectors.

        Parameters
        ----------
        graph
            Numbers and batch indices; its positions must not be used, so that forces and stress
            follow from the vectors alone.
        edges
            Edges i -> j and their vectors in the potential's floating-point type. Those that do not count must add
            nothing: :meth:`Edges.mask` is for what is made of each edge before it is summed.

        Returns
        -------
        (n,) energies in eV, differentiable in the vectors and the parameters.
        """

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """JSON-able description from which :meth:`from_architecture` rebuilds the module."""

    @classmethod
    @abstractmethod
    def from_architecture(cls, architecture: dict[str, Any], head: str | None = None) -> Potential:
        """The module of an :meth:`architecture`, with weights to be loaded.

        Parameters
        ----------
        architecture
            As :meth:`architecture` gives it. Saved files may be anybody's: what it asks for is to be checked.
        head
            The one to use, for models with several.
        """

    @abstractmethod
    def shift_energies(self, offsets: dict[int, float]) -> None:
        """Add per-element energies to the model's own: ``offsets`` in eV by atomic number."""

    @abstractmethod
    def save_native(self, path: Path) -> None:
        """Write the backend's own checkpoint format to ``path``, for its own calculator, LAMMPS and tools."""

    def convert_state(self, state: dict[str, Tensor], architecture: dict[str, Any]) -> dict[str, Tensor]:
        """Weights written together with ``architecture``, in the order the installed backend wants them.

        Parameters
        ----------
        state
            Tensors by name, as they were saved.
        architecture
            That of the saved potential.

        Raises
        ------
        CheckpointError
            If another version of the backend wrote them and they cannot be converted.
        """
        del architecture  # most backends keep their order
        return state

    def energies(self, graph: AtomGraph) -> Tensor:
        """(n,) per-atom energies of ``graph`` in eV, differentiable in positions, cell and parameters."""
        return self.atomic_energies(graph, graph.edges_within(self.cutoff, self.dtype))

    def forward(self, graph: AtomGraph) -> Tensor:
        """Same as :meth:`energies` of ``graph``."""
        return self.energies(graph)

    def predict(
        self, graph: AtomGraph, *, forces: bool = True, stress: bool = True, create_graph: bool = False
    ) -> Prediction:
        """Energy, forces and stress of a batch.

        The energy depends on the structure through its edge vectors r alone, so with g = dE/dr the
        force is the sum of g over the edges that leave an atom minus those that enter it, and the
        virial is the sum of r g^T, symmetric for a rotationally invariant energy. This equals -dE/dx
        and dE/d(strain) and is the same code for every backend.

        Parameters
        ----------
        graph
            Structures on the potential's device.
        forces, stress
            What to compute besides the energy.
        create_graph
            Keep the graph of the derivatives: needed for losses on forces and for gradients through
            trajectories. Never taken from ``training``.
        """
        if not (forces or stress):
            energies = self.energies(graph)
            return Prediction(energies, _sum_by(energies, graph.batch, graph.num_graphs))
        constant = contextlib.nullcontext() if create_graph else _constant_parameters(self.native)
        with torch.enable_grad(), constant:
            edges = graph.edges_within(self.cutoff, self.dtype)
            if not edges.vectors.requires_grad:
                edges = edges.with_vectors(edges.vectors.detach().requires_grad_())
            vectors = edges.vectors
            energies = self.atomic_energies(graph, edges)
            energy = _sum_by(energies, graph.batch, graph.num_graphs)
            gradient: Tensor | None = torch.autograd.grad(
                energy.sum(), vectors, create_graph=create_graph, retain_graph=create_graph, allow_unused=True
            )[0]
        if gradient is None:  # no edges at all: an isolated atom
            gradient = torch.zeros_like(vectors)
        if not create_graph:
            energies, energy, vectors = energies.detach(), energy.detach(), vectors.detach()
        return Prediction(
            energies,
            energy,
            _forces(gradient, edges.index, len(graph.numbers)) if forces else None,
            _stress(gradient, vectors, edges.index, graph) if stress else None,
        )

    def check_numbers(self, graph_or_numbers: AtomGraph | Any) -> None:
        """Raise an :class:`InputError` that names the first atom of ``graph_or_numbers`` whose element is unknown."""
        numbers = graph_or_numbers.numbers if isinstance(graph_or_numbers, AtomGraph) else graph_or_numbers
        known = set(self.numbers)
        for index, number in enumerate(int(z) for z in numbers):
            if number not in known:
                raise InputError(
                    f"atom {index} is {chemical_symbols[number]}, an element this model does not know; "
                    f"it knows {', '.join(chemical_symbols[z] for z in self.numbers)}"
                )

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return next(self.native.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.native.parameters()).device

    def native_parameters(self, trainable_only: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under the native model's own names, with ``trainable_only`` without frozen ones."""
        for name, parameter in self.native.named_parameters():
            if parameter.requires_grad or not trainable_only:
                yield name, parameter


def choose_head(heads: tuple[str, ...], head: str | None) -> str | None:
    """The head to use: the one asked for, or the only one there is.

    Raises
    ------
    InputError
        If ``head`` is not one of ``heads``, or there are several and none is named.
    """
    if head is None and len(heads) <= 1:
        return heads[0] if heads else None
    if head not in heads:
        known = ", ".join(repr(name) for name in heads) or "none"
        raise InputError(f"this model's heads are {known}; head={head!r} is not one of them")
    return head


def plain_values(value: Any) -> Any:
    """Numbers, strings, lists and dicts instead of arrays and tensors: what JSON can hold."""
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    return value


@contextlib.contextmanager
def _constant_parameters(module: nn.Module) -> Iterator[None]:
    """Spare the backward pass to the edge vectors the gradients of parameters nobody asked for."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_()


def _sum_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    return values.new_zeros((size, *values.shape[1:])).index_add(0, index, values)


def _forces(gradient: Tensor, edge_index: Tensor, num_atoms: int) -> Tensor:
    leaving = _sum_by(gradient, edge_index[0], num_atoms)
    return leaving.index_add(0, edge_index[1], gradient, alpha=-1)


def _stress(gradient: Tensor, vectors: Tensor, edge_index: Tensor, graph: AtomGraph) -> Tensor:
    # Symmetrised products, as the derivative by a symmetric strain gives them. Lists of indices would be sent to a GPU.
    (x, y, z), (gx, gy, gz) = vectors.unbind(dim=1), gradient.unbind(dim=1)
    pairs = [0.5 * (y * gz + z * gy), 0.5 * (x * gz + z * gx), 0.5 * (x * gy + y * gx)]
    products = torch.stack([x * gx, y * gy, z * gz, *pairs], dim=1)
    virial = _sum_by(products, graph.batch[edge_index[0]], graph.num_graphs)
    volume = graph.volume
    inverse = torch.where(volume > 0, 1 / volume.clamp(min=1e-12), torch.zeros_like(volume))
    return virial * inverse[:, None].to(virial.dtype)
