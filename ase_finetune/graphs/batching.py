"""Sizes of graphs, known without building them where they are built on access."""

from __future__ import annotations

from collections.abc import Sequence

from ase_finetune.graphs.graph import AtomGraph


def edge_counts(graphs: Sequence[AtomGraph]) -> list[int]:
    """Number of directed edges of each graph.

    Sequences that build their graphs on access know them by an attribute ``edges``.

    Parameters
    ----------
    graphs
        In any order; a sequence of graphs that are built on access will do.
    """
    known = getattr(graphs, "edges", None)
    return [graph.num_edges for graph in graphs] if known is None else list(known)
