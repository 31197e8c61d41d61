"""AtomGraph: one structure or a batch of structures as tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.graphs.neighbors import FloatArray, IntArray, neighbor_list


@dataclass(frozen=True)
class AtomGraph:
    """Structures as one graph: n atoms in b structures, joined by e directed edges.

    Attributes
    ----------
    positions : (n, 3)
        Å.
    cell : (b, 3, 3)
        Lattice vectors as rows, Å; zero rows where a structure has none.
    pbc : (b, 3) bool
    numbers : (n,) int64
        Atomic numbers.
    edge_index : (2, e) int64
        Indices i and j of each edge, counted over the whole batch.
    edge_shift : (e, 3)
        Integer cell shifts: the edge's vector is ``x[j] - x[i] + shift @ cell``.
    batch : (n,) int64
        The structure each atom belongs to, ascending.
    energy : (b,) or None
        Label in eV, with ``energy_mask`` (b,) False where it is missing (the value is then 0).
    forces : (n, 3) or None
        Label in eV/Å, with ``forces_mask`` (n,).
    stress : (b, 6) or None
        Label in eV/Å³, ASE's sign and Voigt order xx, yy, zz, yz, xz, xy, with ``stress_mask`` (b,).
    """

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    numbers: Tensor
    edge_index: Tensor
    edge_shift: Tensor
    batch: Tensor
    energy: Tensor | None = None
    forces: Tensor | None = None
    stress: Tensor | None = None
    energy_mask: Tensor | None = None
    forces_mask: Tensor | None = None
    stress_mask: Tensor | None = None

    @classmethod
    def from_atoms(
        cls,
        atoms: Atoms,
        cutoff: float,
        *,
        dtype: torch.dtype = torch.float32,
        edges: tuple[IntArray, FloatArray] | None = None,
    ) -> AtomGraph:
        """Graph of one structure, without labels.

        Parameters
        ----------
        atoms
            Structure; positions and cell in Å.
        cutoff
            Radius of the edges in Å (not used when ``edges`` are given).
        dtype
            Floating-point type of positions, cell and shifts.
        edges
            ``(edge_index, edge_shift)`` of an existing neighbour list.

        Raises
        ------
        InputError
            If the structure cannot be evaluated; see :func:`neighbor_list`.
        """
        edge_index, edge_shift = neighbor_list(atoms, cutoff) if edges is None else edges
        # torch.tensor copies: a graph must not change when its atoms do.
        return cls(
            positions=torch.tensor(atoms.positions, dtype=dtype),
            cell=torch.tensor(np.asarray(atoms.cell[:])[None], dtype=dtype),
            pbc=torch.tensor(np.asarray(atoms.pbc)[None]),
            numbers=torch.tensor(atoms.numbers, dtype=torch.int64),
            edge_index=torch.as_tensor(edge_index),
            edge_shift=torch.as_tensor(edge_shift, dtype=dtype),
            batch=torch.zeros(len(atoms), dtype=torch.int64),
        )

    @property
    def num_graphs(self) -> int:
        """Number of structures b."""
        return self.cell.shape[0]

    @property
    def num_edges(self) -> int:
        """Number of directed edges e."""
        return self.edge_index.shape[1]

    @property
    def num_atoms(self) -> Tensor:
        """(b,) number of atoms of each structure."""
        return torch.bincount(self.batch, minlength=self.num_graphs)

    @property
    def volume(self) -> Tensor:
        """(b,) cell volumes in Å³; 0 where a structure has no cell."""
        determinant: Tensor = torch.linalg.det(self.cell)
        return determinant.abs()

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the positions."""
        return self.positions.dtype

    def edge_vectors(self) -> Tensor:
        """(e, 3) vectors from i to j in Å, differentiable in positions and cell."""
        i, j = self.edge_index
        vectors = self.positions[j] - self.positions[i]
        if self.num_graphs == 1:
            return vectors + self.edge_shift @ self.cell[0]
        return vectors + torch.einsum("ei,eij->ej", self.edge_shift, self.cell[self.batch[i]])

    def edges_within(self, cutoff: float) -> tuple[Tensor, Tensor]:
        """Edges shorter than ``cutoff`` (Å): ``edge_index`` (2, e') and vectors (e', 3) in Å.

        Neighbour lists with a skin hold longer edges, and a potential may be anything beyond its
        cutoff (SevenNet's cutoff function is not clamped), so every evaluation drops them.
        """
        vectors = self.edge_vectors()
        inside = vectors.detach().square().sum(dim=1) < cutoff * cutoff
        if bool(inside.all()):
            return self.edge_index, vectors
        kept = inside.nonzero().squeeze(1)
        return self.edge_index.index_select(1, kept), vectors.index_select(0, kept)

    def replace(self, **changes: Any) -> AtomGraph:
        """A copy with some fields replaced; the tensors are shared.

        Parameters
        ----------
        **changes
            New values by the name of the field.
        """
        return dataclasses.replace(self, **changes)

    def without_labels(self) -> AtomGraph:
        """The same structures without energy, forces and stress."""
        return self.replace(**dict.fromkeys(_LABELS), **{f"{name}_mask": None for name in _LABELS})

    def without_energy(self) -> AtomGraph:
        """The same structures, their energy labels marked as missing."""
        return self.replace(energy_mask=None if self.energy_mask is None else torch.zeros_like(self.energy_mask))

    def with_labels(self, energy: Any = None, forces: Any = None, stress: Any = None) -> AtomGraph:
        """The same single structure with labels; ``None`` marks a label as missing.

        Parameters
        ----------
        energy
            Scalar, eV.
        forces
            (n, 3), eV/Å.
        stress
            (6,), eV/Å³, ASE's sign and order.

        Raises
        ------
        InputError
            If a label has the wrong shape.
        """
        given = {"energy": energy, "forces": forces, "stress": stress}
        shapes = {"energy": (1,), "forces": (len(self.numbers), 3), "stress": (1, 6)}
        fields: dict[str, Tensor] = {}
        for name, value in given.items():
            shape = shapes[name]
            fields[f"{name}_mask"] = torch.full(shape[:1], value is not None)
            tensor = torch.zeros(shape) if value is None else torch.tensor(np.asarray(value))
            # One row may come without its leading 1; anything else (transposed forces) is an accident.
            if tuple(tensor.shape) != shape and (1, *tensor.shape) != shape:
                raise InputError(f"{name} label has shape {tuple(tensor.shape)}, expected {shape}")
            fields[name] = tensor.reshape(shape).to(self.dtype)
        return self.replace(**fields)

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> AtomGraph:
        """The graph on another device, or with another floating-point type.

        With ``non_blocking``, copies of a pinned graph to a GPU go on while the program does.

        Parameters
        ----------
        device, dtype
            As for :meth:`torch.Tensor.to`; ``None`` leaves it. Whole numbers keep their type.
        """

        def move(value: Tensor) -> Tensor:
            wanted = dtype if value.is_floating_point() else None
            return value.to(device=device, dtype=wanted, non_blocking=non_blocking)

        return self.replace(**{name: move(value) for name, value in self.tensors().items()})

    def pin_memory(self) -> AtomGraph:
        """A copy in page-locked memory, from which copies to a GPU can run in the background."""
        return self.replace(**{name: value.pin_memory() for name, value in self.tensors().items()})

    @property
    def num_bytes(self) -> int:
        """Memory of its tensors in bytes."""
        return sum(value.numel() * value.element_size() for value in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, without labels that are missing altogether."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}


_LABELS = ("energy", "forces", "stress")


def collate(graphs: Sequence[AtomGraph]) -> AtomGraph:
    """Join graphs into one batch, in the order given.

    Parameters
    ----------
    graphs
        Of one or more structures each, all with labels or all without.

    Returns
    -------
    One graph, whose ``batch`` says to which structure each atom belongs.

    Raises
    ------
    InputError
        If there is nothing to join, or only some of the graphs carry labels.
    """
    if not graphs:
        raise InputError("cannot make a batch of no structures")
    if len(graphs) == 1:
        return graphs[0]
    labelled = {graph.energy is not None for graph in graphs}
    if len(labelled) > 1:
        raise InputError("cannot join structures with and without labels in one batch")
    atoms = _offsets([len(graph.numbers) for graph in graphs])
    structures = _offsets([graph.num_graphs for graph in graphs])
    names = ["positions", "cell", "pbc", "numbers", "edge_shift"]
    if labelled == {True}:
        names += [*_LABELS, *(f"{name}_mask" for name in _LABELS)]
    return AtomGraph(
        edge_index=torch.cat([g.edge_index + start for g, start in zip(graphs, atoms, strict=True)], dim=1),
        batch=torch.cat([g.batch + start for g, start in zip(graphs, structures, strict=True)]),
        **{name: torch.cat([getattr(graph, name) for graph in graphs]) for name in names},
    )


def _offsets(sizes: list[int]) -> list[int]:
    return [0, *np.cumsum(sizes[:-1]).tolist()]
