"""What a stage of fine-tuning trains on and is judged by."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.history import FRAME_COLUMNS, Columns
from ase_finetune.graphs import AtomGraph, collate
from ase_finetune.losses import LabelCounts, label_counts
from ase_finetune.metrics import Errors, ErrorSums, evaluate
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.batched import batches_by_edges


class Measured(Protocol):
    """Errors over a set, by which stages report and choose."""

    @property
    def loss(self) -> float:
        """What is minimised."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values by name."""


@dataclass(frozen=True)
class Replay:
    """Labelled graphs of old structures: those trained on, and those held out to watch forgetting."""

    trained: list[AtomGraph] = field(default_factory=list)
    watched: list[AtomGraph] = field(default_factory=list)


class Task(ABC):
    """Examples, their loss in pieces, and errors before, during and after training.

    Attributes
    ----------
    name
        Of the examples, in messages and in the history.
    columns
        What the history keeps of the errors of each set.
    size, epochs, batch_size, learning_rate, clip_norm
        Number of examples, and how they are trained on.
    untouched
        Errors on the training examples before training, where they are known.
    """

    name: ClassVar[str]
    columns: ClassVar[Columns]
    size: int
    epochs: int
    batch_size: int
    learning_rate: float
    clip_norm: float | None
    untouched: Measured | None = None

    @abstractmethod
    def begin_epoch(self) -> None:
        """Start the sums of an epoch."""

    @abstractmethod
    def pieces(self, indices: Sequence[int]) -> list[Callable[[], Tensor]]:
        """The loss of a batch, cut into pieces that add up to it."""

    @abstractmethod
    def train_errors(self) -> Measured:
        """Errors over the batches of this epoch, each with the weights of its step."""

    @abstractmethod
    def evaluate(self, potential: Potential) -> Measured | None:
        """Errors on the validation examples; ``None`` without any."""

    def own_parameters(self) -> list[tuple[nn.Parameter, float]]:
        """Parameters besides the potential's that are trained, and their learning rates."""
        return []

    def notes(self) -> list[str]:
        """What else has to be told about this epoch."""
        return []

    def forgetting(self, replay: Measured, before: Measured) -> float:
        """How much was forgotten, in units of the validation loss."""
        return replay.loss - before.loss


class FrameTask(Task):
    """Labelled frames: energies, forces and stresses.

    Parameters
    ----------
    potential
        What is trained.
    train, valid
        Labelled graphs in its dtype.
    config
        The options.
    untouched
        Errors of the potential on ``train`` before training, where they are known.
    """

    name = "frames"
    columns = FRAME_COLUMNS

    def __init__(
        self,
        potential: Potential,
        train: list[AtomGraph],
        valid: list[AtomGraph],
        config: FinetuneConfig,
        untouched: Errors | None = None,
    ) -> None:
        self._potential, self._train, self._valid, self._config = potential, train, valid, config
        self.size, self.epochs, self.batch_size = len(train), config.epochs, config.batch_size
        self.learning_rate, self.clip_norm = config.learning_rate, config.clip_norm
        self.untouched = untouched
        self._sums = ErrorSums(config.loss)

    def begin_epoch(self) -> None:
        self._sums = ErrorSums(self._config.loss)

    def pieces(self, indices: Sequence[int]) -> list[Callable[[], Tensor]]:
        return frame_pieces(self._potential, [self._train[index] for index in indices], self._config, sums=self._sums)

    def train_errors(self) -> Errors:
        return self._sums.errors()

    def evaluate(self, potential: Potential) -> Errors | None:
        return evaluate(potential, self._valid, self._config.loss)


def edges_at_once(potential: Potential, config: FinetuneConfig) -> int:
    """Bound of the edges of one piece. Smaller ones stay in the caches of a CPU; a GPU wants what fits."""
    return config.max_edges or (2500 if potential.device.type == "cpu" else 100_000)


def frame_pieces(
    potential: Potential,
    graphs: list[AtomGraph],
    config: FinetuneConfig,
    *,
    weight: float = 1.0,
    sums: ErrorSums | None = None,
) -> list[Callable[[], Tensor]]:
    """The weighted loss of a batch of labelled frames, in pieces that add up to it."""
    counts = label_counts(graphs)
    return [
        functools.partial(_frame_loss, potential, [graphs[index] for index in piece], config, counts, weight, sums)
        for piece in batches_by_edges(graphs, edges_at_once(potential, config))
    ]


def _frame_loss(
    potential: Potential,
    graphs: list[AtomGraph],
    config: FinetuneConfig,
    counts: LabelCounts,
    weight: float,
    sums: ErrorSums | None,
) -> Tensor:
    batch = collate(graphs).to(potential.device)
    loss = config.loss
    prediction = potential.predict(batch, forces=loss.needs_forces, stress=loss.needs_stress, create_graph=True)
    if sums is not None:
        sums.add(prediction, batch)
    return weight * loss(prediction, batch, counts)
