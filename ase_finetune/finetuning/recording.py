"""What is kept of a run to judge it by: predictions before and after, relaxations before and after, drift."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_finetune.continual import FisherInformation
from ase_finetune.finetuning.context import Context
from ase_finetune.finetuning.relaxation_task import RelaxationTask
from ase_finetune.finetuning.state import clones, copy_into
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials.base import Potential, Prediction
from ase_finetune.potentials.batched import predict_many
from ase_finetune.reporting import FrameRecord, PairRecord, TensorDrift

#: Structures of a set, and pairs, that are evaluated for the record at most.
MOST_FRAMES, MOST_PAIRS = 200, 100

#: Pairs whose structures are kept, and rollouts whose gradients are looked at.
_SHOWN, _ROLLOUTS = 10, 8


@dataclass(frozen=True)
class JudgedSet:
    """Labelled structures to compare before and after.

    Attributes
    ----------
    name
        Of the set.
    graphs
        With labels in the reference of the model.
    describe
        How messages name one of them.
    own_labels
        Whether the pretrained model made the labels.
    from_original
        Whether the change since the original model is shown, not that since the weights before training.
    """

    name: str
    graphs: Sequence[AtomGraph]
    describe: Callable[[int], str]
    own_labels: bool = False
    from_original: bool = False


class Weights:
    """The weights before training, to compare those after it with.

    Parameters
    ----------
    potential
        With the weights before.
    original
        The model that the first of several rounds began with; the potential itself in a first one.
    """

    def __init__(self, potential: Potential, original: Potential) -> None:
        self._potential = potential
        self.before, self.original = (
            {name: value.cpu() for name, value in clones(each.native_parameters()).items()}
            for each in (potential, original)
        )

    @contextmanager
    def put_back(self, original: bool = False) -> Iterator[None]:
        """Give the potential the weights before, or those of the original, for a while."""
        now = clones(self._potential.native_parameters())
        copy_into(self._potential.native_parameters(), self.original if original else self.before)
        try:
            yield
        finally:
            copy_into(self._potential.native_parameters(), now)


def record_frames(run: Context, judged: Sequence[JudgedSet], weights: Weights) -> list[FrameRecord]:
    """Predictions before and after on up to :data:`MOST_FRAMES` structures of each set. All processes take part."""
    return [_record_set(run, item, weights) for item in judged if len(item.graphs)]


def _record_set(run: Context, item: JudgedSet, weights: Weights) -> FrameRecord:
    chosen = _spread(len(item.graphs), MOST_FRAMES)
    graphs = [item.graphs[index] for index in chosen]
    after = _predict(run, graphs, f"report: {item.name}")
    with weights.put_back(item.from_original):
        before = _predict(run, graphs, f"report: {item.name} before")
    rows = list(zip(graphs, before, after, strict=True))
    atoms = [len(graph.numbers) for graph in graphs]
    return FrameRecord(
        name=item.name,
        own_labels=item.own_labels,
        numbers=torch.cat([graph.numbers for graph in graphs]).numpy().astype(np.int64),
        counts=np.array(atoms, dtype=np.int64),
        descriptions=[item.describe(index) for index in chosen],
        energy=np.stack([_energy(*row) for row in rows]),
        forces=np.concatenate([_components(*row, "forces") for row in rows]),
        stress=np.concatenate([_components(*row, "stress") for row in rows]),
        available=len(item.graphs),
    )


def _predict(run: Context, graphs: Sequence[AtomGraph], what: str) -> list[Prediction]:
    with run.log.bar(math.ceil(len(graphs) / run.processes.size), what) as bar:
        return predict_many(run.potential, graphs, on_structure=bar.update, processes=run.processes)


def _energy(graph: AtomGraph, before: Prediction, after: Prediction) -> Any:
    """(3,) label, before, after, eV."""
    assert graph.energy is not None
    assert graph.energy_mask is not None
    label = float(graph.energy) if bool(graph.energy_mask) else math.nan
    return np.array([label, float(before.energy), float(after.energy)])


def _components(graph: AtomGraph, before: Prediction, after: Prediction, what: str) -> Any:
    """(rows, components, 3) label, before, after of forces or stress."""
    label, mask = getattr(graph, what), getattr(graph, f"{what}_mask")
    found: list[Tensor] = [getattr(prediction, what) for prediction in (before, after)]
    known = torch.where(mask[:, None], label, math.nan)
    return torch.stack([known.double(), *(value.double() for value in found)], dim=-1).numpy()


def record_drift(potential: Potential, weights: Weights, fisher: FisherInformation | None) -> list[TensorDrift]:
    """How far each parameter tensor has moved from the original model, in the order of the model."""
    shares: Mapping[str, float] = {} if fisher is None else fisher.shares()
    drift = []
    for name, parameter in potential.native_parameters():
        before = weights.original[name].double()
        change = parameter.detach().cpu().double() - before
        sizes = {"change": float(change.square().mean().sqrt()), "scale": float(before.square().mean().sqrt())}
        share = shares.get(name, math.nan)
        drift.append(TensorDrift(name, before.numel(), parameter.requires_grad, stiffness=share, **sizes))
    return drift


def record_pairs(run: Context, task: RelaxationTask, weights: Weights) -> PairRecord | None:
    """Relaxations before and after of up to :data:`MOST_PAIRS` held-out pairs; ``None`` without any.

    All processes take part.
    """
    if task.valid is None:
        return None
    pairs = task.valid.select(_spread(len(task.valid), MOST_PAIRS))
    after = task.relax(run.potential, pairs)
    with weights.put_back():
        before = task.relax(run.potential, pairs)
    distances = [math.inf if math.isnan(error.delta_q) else error.delta_q for error, _ in after]
    shown = sorted(range(len(pairs)), key=lambda k: -distances[k])[:_SHOWN]
    return PairRecord(
        descriptions=[pairs.describe(k) for k in range(len(pairs))],
        before=[asdict(error) for error, _ in before],
        after=[asdict(error) for error, _ in after],
        shown=shown,
        targets=[pairs[k].relaxed for k in shown],
        ends_before=[before[k][1] for k in shown],
        ends_after=[after[k][1] for k in shown],
        gradient_norms=task.gradient_norms(_ROLLOUTS),
    )


def _spread(count: int, most: int) -> list[int]:
    """Up to ``most`` of ``count`` positions, evenly."""
    return sorted({int(k) for k in np.linspace(0, count - 1, min(most, count)).round()})
