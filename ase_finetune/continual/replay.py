"""Replay without the pretraining set: labels made by the pretrained model itself."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ase_finetune.errors import CheckpointError, OutputError
from ase_finetune.files import make_folder, read_sealed, write_sealed
from ase_finetune.graphs import AtomGraph
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.batched import predict_many
from ase_finetune.potentials.storage import state_hash

_KIND = "labels-1"


def pseudo_label(
    potential: Potential,
    graphs: Sequence[AtomGraph],
    *,
    cache: Path | None = None,
    on_structure: Callable[[], object] | None = None,
    processes: Processes = ALONE,
) -> list[AtomGraph]:
    """Label structures with a potential's own energy, forces and stress.

    Training on them holds the potential where it is. The labels of original data do no better
    (Tompa et al., arXiv 2606.12704).

    Parameters
    ----------
    potential
        The pretrained model.
    graphs
        One structure each.
    cache
        Folder to keep the labels in, so that the same model labels the same structures only once.
    on_structure
        Called after each structure, for a progress bar.
    processes
        Share the work; all get all labels.

    Returns
    -------
    The graphs with labels; stress is left out where the cell has no volume.
    """
    file = cache / f"{_digest(potential, graphs)}.safetensors" if cache is not None else None
    # The first process looks for all: others may see another folder, or a file that is being written.
    labels = processes.gather(_read(file, graphs) if file is not None and processes.is_first else None)[0]
    if labels is None:
        predictions = predict_many(potential, graphs, on_structure=on_structure, processes=processes)
        labels = {
            "energy": torch.cat([p.energy for p in predictions]),
            "forces": torch.cat([p.forces for p in predictions if p.forces is not None]),
            "stress": torch.cat([p.stress for p in predictions if p.stress is not None]),
        }
        if file is not None and processes.is_first:
            _write(labels, file)
    forces = labels["forces"].split([len(graph.numbers) for graph in graphs])
    return [
        graph.with_labels(energy, force, stress if float(graph.volume[0]) > 0 else None)
        for graph, energy, force, stress in zip(graphs, labels["energy"], forces, labels["stress"], strict=True)
    ]


def _read(file: Path, graphs: Sequence[AtomGraph]) -> dict[str, Tensor] | None:
    try:
        labels, _ = read_sealed(file, kind=_KIND)
    except CheckpointError:  # a damaged file, or one of an earlier version, is only a cache miss
        return None
    atoms = sum(len(graph.numbers) for graph in graphs)
    shapes = {"energy": (len(graphs),), "forces": (atoms, 3), "stress": (len(graphs), 6)}
    whole = labels.keys() == shapes.keys() and all(
        labels[name].shape == shape and labels[name].is_floating_point() and bool(labels[name].isfinite().all())
        for name, shape in shapes.items()
    )
    return labels if whole else None


def _write(labels: dict[str, Tensor], file: Path) -> None:
    # A cache that cannot be written (no permission, full disk) costs time, not the run.
    with contextlib.suppress(OutputError):
        make_folder(file.parent)
        write_sealed(file, labels, {}, kind=_KIND)


def _digest(potential: Potential, graphs: Sequence[AtomGraph]) -> str:
    digest = hashlib.sha256(state_hash(potential).encode())
    for graph in graphs:
        for tensor in (graph.numbers, graph.positions, graph.cell, graph.pbc):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
