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
from ase_finetune.graphs.cells import signed_volume
from ase_finetune.graphs.edges import Edges, by_receiver, in_order
from ase_finetune.graphs.neighbors import FloatArray, IntArray, neighbor_list
from ase_finetune.graphs.sending import send


@dataclass(frozen=True)
class AtomGraph:
    """Structures as one graph: n atoms in b structures, joined by e directed edges.

    All floating-point numbers are float64, whatever the potential computes in: it casts the vectors of the edges, not
    the positions, so that forces are the same wherever an atom is.

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
    edge_shift : (e, 3) float32
        Whole cell shifts: the edge's vector is ``x[j] - x[i] + shift @ cell``.
    batch : (n,) int64
        The structure each atom belongs to, ascending.
    num_atoms : (b,) int64
        Number of atoms of each structure.
    filled : (e,) bool or None
        Of a graph whose edges lie in slots (:meth:`arranged`): False where a slot holds no edge.
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
    num_atoms: Tensor
    filled: Tensor | None = None
    energy: Tensor | None = None
    forces: Tensor | None = None
    stress: Tensor | None = None
    energy_mask: Tensor | None = None
    forces_mask: Tensor | None = None
    stress_mask: Tensor | None = None

    @classmethod
    def from_atoms(cls, atoms: Atoms, cutoff: float, *, edges: tuple[IntArray, FloatArray] | None = None) -> AtomGraph:
        """Graph of one structure, without labels.

        Parameters
        ----------
        atoms
            Structure; positions and cell in Å.
        cutoff
            Radius of the edges in Å (not used when ``edges`` are given).
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
            positions=torch.tensor(atoms.positions, dtype=torch.float64),
            cell=torch.tensor(np.asarray(atoms.cell[:])[None], dtype=torch.float64),
            pbc=torch.tensor(np.asarray(atoms.pbc)[None]),
            numbers=torch.tensor(atoms.numbers, dtype=torch.int64),
            edge_index=torch.as_tensor(edge_index),
            edge_shift=torch.as_tensor(edge_shift, dtype=torch.float32),
            batch=torch.zeros(len(atoms), dtype=torch.int64),
            num_atoms=torch.tensor([len(atoms)]),
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
    def volume(self) -> Tensor:
        """(b,) cell volumes in Å³; 0 where a structure has no cell."""
        return signed_volume(self.cell).abs()

    def edge_vectors(self) -> Tensor:
        """(e, 3) vectors from i to j in Å, differentiable in positions and cell."""
        i, j = self.edge_index
        vectors = self.positions.index_select(0, j) - self.positions.index_select(0, i)
        shift = self.edge_shift.to(vectors.dtype)
        if self.num_graphs == 1:
            return vectors + shift @ self.cell[0]
        return vectors + torch.einsum("ei,eij->ej", shift, self.cell[self.batch[i]])

    def edges_within(self, cutoff: float, dtype: torch.dtype) -> Edges:
        """Edges shorter than ``cutoff`` (Å), their vectors in a floating-point type.

        Neighbour lists with a skin hold longer edges, and a potential may be anything beyond its
        cutoff (SevenNet's cutoff function is not clamped), so every evaluation leaves them out: by dropping them, or,
        where edges lie in slots, by marking them, so that no shape depends on where the atoms are.

        Parameters
        ----------
        cutoff
            Å.
        dtype
            Of the vectors: they are formed in float64 and then rounded.
        """
        vectors = self.edge_vectors()
        inside = vectors.detach().square().sum(dim=1) < cutoff * cutoff
        vectors = vectors.to(dtype)
        if self.filled is not None:
            return Edges.masked(self.edge_index, vectors, cutoff, inside & self.filled)
        if not bool(inside.all()):
            kept = inside.nonzero().squeeze(1)
            return Edges(self.edge_index.index_select(1, kept), vectors.index_select(0, kept), cutoff)
        return Edges(self.edge_index, vectors, cutoff)

    def arranged(self) -> AtomGraph:
        """The same structures with their edges in slots, as :class:`Edges` describes it, for any number of evaluations.

        Nothing has to be read back from a device to evaluate it, and no shape depends on where the atoms are.
        """
        if self.filled is not None:
            return self
        index, shift = self.edge_index, self.edge_shift
        order, filled = by_receiver(index[0], len(self.numbers))
        if not self.num_edges:  # one group of empty slots
            index, shift = index.new_zeros((2, 1)), shift.new_zeros((1, 3))
        shift = shift.index_select(0, order) * filled[:, None]
        return self.replace(edge_index=in_order(index, order, filled), edge_shift=shift, filled=filled)

    def padded(self, structures: int, atoms: int, slots: int) -> AtomGraph:
        """The same structures, and further ones, of which the first has all further atoms, and further empty slots.

        Parameters
        ----------
        structures, atoms, slots
            How many there are then: more structures than there are, not fewer atoms, and slots in whole groups.
        """
        graph = self.arranged()
        assert graph.filled is not None
        extra, more, empty = structures - graph.num_graphs, atoms - len(graph.numbers), slots - graph.num_edges
        device = graph.numbers.device

        def zeros(like: Tensor, *shape: int) -> Tensor:
            return torch.zeros(shape, dtype=like.dtype, device=device)

        return graph.replace(
            positions=torch.cat([graph.positions, zeros(graph.positions, more, 3)]),
            cell=torch.cat([graph.cell, zeros(graph.cell, extra, 3, 3)]),
            pbc=torch.cat([graph.pbc, zeros(graph.pbc, extra, 3)]),
            numbers=torch.cat([graph.numbers, graph.numbers[:1].expand(more)]),
            # Empty slots add nothing, to the last atom: receivers stay in ascending order.
            edge_index=torch.cat([graph.edge_index, zeros(graph.edge_index, 2, empty) + (atoms - 1)], dim=1),
            edge_shift=torch.cat([graph.edge_shift, zeros(graph.edge_shift, empty, 3)]),
            batch=torch.cat([graph.batch, zeros(graph.batch, more) + graph.num_graphs]),
            num_atoms=torch.cat([graph.num_atoms, zeros(graph.num_atoms, 1) + more, zeros(graph.num_atoms, extra - 1)]),
            filled=torch.cat([graph.filled, zeros(graph.filled, empty)]),
        ).without_labels()

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
            fields[name] = tensor.reshape(shape).double()
        return self.replace(**fields)

    def to(self, device: torch.device | str) -> AtomGraph:
        """The graph on another device: on any but the CPU with its edges in slots, copied while the program goes on.

        Parameters
        ----------
        device
            As for :meth:`torch.Tensor.to`.
        """
        device = torch.device(device)
        graph = self if device.type == "cpu" or self.positions.device == device else self.arranged()
        return graph.replace(**{name: send(value, device) for name, value in graph.tensors().items()})

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
    if len({graph.filled is None for graph in graphs}) > 1:
        raise InputError("cannot join graphs with and without slots in one batch")
    atoms = _offsets([len(graph.numbers) for graph in graphs])
    structures = _offsets([graph.num_graphs for graph in graphs])
    names = ["positions", "cell", "pbc", "numbers", "edge_shift", "num_atoms"]
    if graphs[0].filled is not None:
        names.append("filled")
    if labelled == {True}:
        names += [*_LABELS, *(f"{name}_mask" for name in _LABELS)]
    return AtomGraph(
        edge_index=torch.cat([g.edge_index + start for g, start in zip(graphs, atoms, strict=True)], dim=1),
        batch=torch.cat([g.batch + start for g, start in zip(graphs, structures, strict=True)]),
        **{name: torch.cat([getattr(graph, name) for graph in graphs]) for name in names},
    )


def _offsets(sizes: list[int]) -> list[int]:
    return [0, *np.cumsum(sizes[:-1]).tolist()]
