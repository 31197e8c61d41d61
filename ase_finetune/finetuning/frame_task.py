"""The task of labelled frames, and the batches that frames and replay structures are trained on in."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ase_finetune.data.loading import GraphLoader
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.forgetting import Forgetting
from ase_finetune.finetuning.history import FRAME_COLUMNS, STRESS_COLUMNS, Columns, Log
from ase_finetune.finetuning.tasks import Task
from ase_finetune.finetuning.updating import Piece, PieceLoss
from ase_finetune.graphs import AtomGraph, collate, edge_counts
from ase_finetune.losses import LabelCounts, Loss, label_counts
from ase_finetune.metrics import Errors, ErrorSums, evaluate
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.batched import batches_by_edges
from ase_finetune.potentials.memory import CPU_EDGES, EdgeBudget, probe_edges


@dataclass(frozen=True)
class Replay:
    """Old structures: those trained on (none if ``None``), those held out to watch forgetting, and its measure."""

    trained: FrameBatches | None = None
    watched: Sequence[AtomGraph] = field(default_factory=list)
    forgetting: Forgetting | None = None


class FrameTask(Task):
    """Labelled frames: energies, forces and stresses.

    Parameters
    ----------
    train
        Labelled graphs, and how they are worked on.
    valid
        Labelled graphs.
    config
        The options.
    untouched
        Errors of the potential on ``train`` before training, where they are known.
    log
        For progress bars.
    """

    name = "frames"

    def __init__(
        self,
        train: FrameBatches,
        valid: Sequence[AtomGraph],
        config: FinetuneConfig,
        untouched: Errors | None = None,
        log: Log | None = None,
    ) -> None:
        self._train, self._valid, self._config, self._log = train, valid, config, log or Log(0)
        self.size, self.epochs, self.batch_size = len(train), config.epochs, config.batch_size
        self.learning_rate, self.clip_norm = config.learning_rate, config.clip_norm
        self.untouched = untouched
        has_stress = untouched is not None and not math.isnan(untouched.stress_mae) and config.loss.needs_stress
        self.columns: Columns = STRESS_COLUMNS if has_stress else FRAME_COLUMNS
        self._sums = ErrorSums(config.loss)

    def begin_epoch(self) -> None:
        self._sums = ErrorSums(self._config.loss)

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[list[Piece]]:
        return self._train.pieces(order, self._sums)

    def train_errors(self) -> Errors:
        return self._sums.errors(self._train.processes)

    def evaluate(self, potential: Potential) -> Errors | None:
        processes = self._train.processes
        with self._log.bar(math.ceil(len(self._valid) / processes.size), "validation") as bar:
            return evaluate(potential, self._valid, self._config.loss, on_structure=bar.update, processes=processes)

    def state(self) -> dict[str, Any]:
        return {"sums": self._sums.state(), "edges": self._train.budget.edges}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._sums.load_state(state["sums"])
        self._train.budget.edges = int(state["edges"])


class FrameBatches:
    """Turns batches of labelled graphs into pieces of their loss.

    Parameters
    ----------
    potential
        What is trained.
    graphs
        Labelled graphs, a list or lazy ones.
    loss
        The loss.
    budget
        Edges at once.
    weight
        Of the loss.
    processes
        Share each batch, by the number of edges.
    num_workers
        Worker processes that build lazy graphs ahead.
    describe
        How messages name a graph.
    """

    def __init__(
        self,
        potential: Potential,
        graphs: Sequence[AtomGraph],
        loss: Loss,
        budget: EdgeBudget,
        *,
        weight: float = 1.0,
        processes: Processes = ALONE,
        num_workers: int = 0,
        describe: Callable[[int], str] = "graph {}".format,
    ) -> None:
        self.processes, self.budget = processes, budget
        self._potential, self._loss, self._weight, self._describe = potential, loss, weight, describe
        self._edges = edge_counts(graphs)
        self._loader = GraphLoader(graphs, num_workers=num_workers)

    def __len__(self) -> int:
        return len(self._edges)

    def pieces(self, order: Iterable[Sequence[int]], sums: ErrorSums | None = None) -> Iterator[list[Piece]]:
        """For each batch the pieces of this process's share; errors are added to ``sums``."""
        # The loader reads ahead: which graphs a batch holds is known when they come.
        shares: deque[list[int]] = deque()
        batches = self._loader.batches(self._shared(order, shares))
        while (found := self._next(batches)) is not None:
            share = shares.popleft()
            counts = label_counts(found)
            if self.processes.size > 1:
                # Means are over the whole batch, wherever its parts are worked on.
                counts = LabelCounts(*(round(count) for count in self.processes.total(counts)))
            edges = dict(zip(share, edge_counts(found), strict=True))
            loss = functools.partial(self._piece_loss, dict(zip(share, found, strict=True)), counts, sums)
            pieces = batches_by_edges(found, self.budget.edges)
            yield [Piece([share[k] for k in piece], edges, loss, self.budget, self._describe) for piece in pieces]

    def _shared(self, order: Iterable[Sequence[int]], shares: deque[list[int]]) -> Iterator[list[int]]:
        for batch in order:
            shares.append([batch[k] for k in self.processes.share([self._edges[index] for index in batch])])
            yield shares[-1]

    def _next(self, batches: Iterator[list[AtomGraph]]) -> list[AtomGraph] | None:
        """The share of the next batch that is worked on here; if a process cannot read its own, all hear of it."""
        return self.processes.together(lambda: next(batches, None))

    def _piece_loss(
        self, graphs: Mapping[int, AtomGraph], counts: LabelCounts, sums: ErrorSums | None, examples: list[int]
    ) -> PieceLoss:
        batch = collate([graphs[index] for index in examples]).to(self._potential.device)
        prediction = self._potential.predict(
            batch, forces=self._loss.needs_forces, stress=self._loss.needs_stress, create_graph=True
        )
        value = self._weight * self._loss(prediction, batch, counts)
        # Without its graph, which would live until the last piece is done.
        found = prediction.detach()
        return PieceLoss(value, lambda: None if sums is None else sums.add(found, batch))


def edge_budget(
    potential: Potential, sets: Sequence[Sequence[AtomGraph]], config: FinetuneConfig, tell: Callable[[str], object]
) -> EdgeBudget:
    """How many edges are differentiated at once: as given, or what a probe with the largest graph finds."""
    sizes = [(edges, k, index) for k, graphs in enumerate(sets) for index, edges in enumerate(edge_counts(graphs))]
    if config.max_edges is not None or not sizes:
        return EdgeBudget(config.max_edges or CPU_EDGES, tell)
    _, k, index = max(sizes)
    largest = sets[k][index]

    def loss(graph: AtomGraph) -> Tensor:
        needs = {"forces": config.loss.needs_forces, "stress": config.loss.needs_stress}
        return config.loss(potential.predict(graph, **needs, create_graph=True), graph)

    return EdgeBudget(probe_edges(potential, largest, loss), tell)
