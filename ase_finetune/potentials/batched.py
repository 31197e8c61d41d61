"""Evaluating many structures in batches that are bounded by their number of edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ase_finetune.errors import InputError
from ase_finetune.graphs import AtomGraph, collate, edge_counts
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.base import Potential, Prediction, on_host
from ase_finetune.potentials.memory import halve_if_out_of_memory

#: Edges per batch when nothing is said: memory and time of a model grow with the edges, not with the
#: structures. About 1 GB for SevenNet-0 when only forces are asked for.
DEFAULT_MAX_EDGES = 20_000


def batches_by_edges(graphs: Sequence[AtomGraph], max_edges: int = DEFAULT_MAX_EDGES) -> list[list[int]]:
    """Indices of ``graphs`` in batches of at most ``max_edges`` edges, large structures first.

    A structure with more edges than that gets a batch of its own.

    Raises
    ------
    InputError
        If ``max_edges`` is not positive.
    """
    return fill_batches(edge_counts(graphs), max_edges)


def fill_batches(edges: Sequence[int], max_edges: int) -> list[list[int]]:
    """As :func:`batches_by_edges`, for structures of which the numbers of edges are known."""
    if max_edges < 1:
        raise InputError(f"max_edges must be positive, got {max_edges}")
    batches: list[list[int]] = []
    filled = 0
    for index in sorted(range(len(edges)), key=lambda index: -edges[index]):
        if not batches or filled + edges[index] > max_edges:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += edges[index]
    return batches


def predict_many(
    potential: Potential,
    graphs: Sequence[AtomGraph],
    *,
    forces: bool = True,
    stress: bool = True,
    max_edges: int = DEFAULT_MAX_EDGES,
    on_structure: Callable[[], object] | None = None,
    processes: Processes = ALONE,
) -> list[Prediction]:
    """Predictions of single structures, in the order given.

    Parameters
    ----------
    potential
        The graphs are moved to its device.
    graphs
        One structure each.
    forces, stress
        What to compute besides the energy.
    max_edges
        Bound of one batch; a batch that does not fit into memory is halved.
    on_structure
        Called once per structure, for example to advance a progress bar.
    processes
        Share the work; all of them get all predictions.

    Returns
    -------
    One :class:`Prediction` per structure on the CPU, without autograd graph.
    """
    options: dict[str, Any] = {"forces": forces, "stress": stress, "max_edges": max_edges, "processes": processes}
    found = dict(predict_each(potential, graphs, on_structure=on_structure, **options))
    return [found[index] for index in range(len(graphs))]


def predict_each(
    potential: Potential,
    graphs: Sequence[AtomGraph],
    *,
    forces: bool = True,
    stress: bool = True,
    max_edges: int = DEFAULT_MAX_EDGES,
    on_structure: Callable[[], object] | None = None,
    processes: Processes = ALONE,
) -> Iterator[tuple[int, Prediction]]:
    """As :func:`predict_many`, one position and prediction at a time, so that none needs to be kept.

    They come in no order to rely on, but in the same one in all processes.
    """
    found: dict[int, Prediction] = {}

    def work(indices: list[int]) -> None:
        chosen = [graphs[index].without_labels() for index in indices]
        with torch.no_grad():
            prediction = potential.predict(collate(chosen).to(potential.device), forces=forces, stress=stress)
        sizes = [len(graph.numbers) for graph in chosen]
        found.update(zip(indices, split_prediction(prediction, sizes), strict=True))

    batches = shared_batches(graphs, max_edges, processes)
    for turn in range(max(processes.gather(len(batches)))):
        found = {}
        work_off(work, batches[turn : turn + 1], processes)
        for part in processes.gather(found):
            for index, prediction in part.items():
                if on_structure is not None:
                    on_structure()
                yield index, prediction


def shared_batches(graphs: Sequence[AtomGraph], max_edges: int, processes: Processes = ALONE) -> list[list[int]]:
    """Batches, as :func:`batches_by_edges` makes them, of this process's share of the graphs."""
    edges = edge_counts(graphs)
    own = processes.share(edges)
    return [[own[k] for k in batch] for batch in fill_batches([edges[index] for index in own], max_edges)]


def work_off(work: Callable[[list[int]], object], batches: Sequence[list[int]], processes: Processes = ALONE) -> None:
    """Do ``work`` on each batch, halved where it does not fit into memory; if a process fails, all hear of it."""

    def turns() -> None:
        for indices in batches:
            halve_if_out_of_memory(work, indices)

    processes.together(turns)


def split_prediction(prediction: Prediction, sizes: Sequence[int]) -> list[Prediction]:
    """The prediction of each structure of a batch, given their numbers of atoms, on the CPU."""
    (whole,) = on_host([prediction])
    atoms = list(sizes)
    energies, energy = whole.energies.split(atoms), whole.energy.split(1)
    forces = [None] * len(atoms) if whole.forces is None else whole.forces.split(atoms)
    stress = [None] * len(atoms) if whole.stress is None else whole.stress.split(1)
    return [Prediction(*parts) for parts in zip(energies, energy, forces, stress, strict=True)]
