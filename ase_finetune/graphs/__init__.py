"""Graphs of atoms: batches of structures as tensors, and their neighbour lists."""

from ase_finetune.graphs.batching import edge_counts
from ase_finetune.graphs.edges import Edges
from ase_finetune.graphs.graph import AtomGraph, collate
from ase_finetune.graphs.moving import MovingGraph
from ase_finetune.graphs.neighbors import SkinNeighborList, check_atoms, neighbor_list

__all__ = [
    "AtomGraph",
    "Edges",
    "MovingGraph",
    "SkinNeighborList",
    "check_atoms",
    "collate",
    "edge_counts",
    "neighbor_list",
]
