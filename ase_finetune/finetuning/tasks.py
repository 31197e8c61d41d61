"""What a stage of fine-tuning trains on and is judged by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from torch import nn

from ase_finetune.finetuning.history import Columns
from ase_finetune.finetuning.updating import Piece
from ase_finetune.potentials.base import Potential


class Measured(Protocol):
    """Errors over a set, by which stages report and choose."""

    @property
    def loss(self) -> float:
        """What is minimised."""

    @property
    def losses(self) -> Sequence[float]:
        """What ``loss`` is the mean of, for each example in their order, where it is kept."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values by name."""


@dataclass(frozen=True)
class RolloutErrors:
    """Where the rollouts of an epoch ended: mean loss, medians (Å, dimensionless), rollouts left out."""

    loss: float
    rmsd_median: float
    strain_median: float
    skipped: int
    losses: Sequence[float] = ()

    def to_dict(self) -> dict[str, Any]:
        """Values over the set by name."""
        return {name: value for name, value in asdict(self).items() if name != "losses"}


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
    columns: Columns
    size: int
    epochs: int
    batch_size: int
    learning_rate: float
    clip_norm: float | None
    untouched: Measured | None = None

    @abstractmethod
    def begin_epoch(self) -> None:
        """Forget the errors of the last epoch."""

    @abstractmethod
    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[list[Piece]]:
        """For each batch of examples the pieces, which add up to its loss, of this process's share."""

    @abstractmethod
    def train_errors(self) -> Measured:
        """Errors over the batches of this epoch, each with the weights of its step."""

    @abstractmethod
    def evaluate(self, potential: Potential) -> Measured | None:
        """Errors on the validation examples; ``None`` without any."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What this process has noted of the epoch so far, JSON-able."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Add what :meth:`state` gave to an epoch that has just begun; what several processes noted one by one."""

    def own_parameters(self) -> list[tuple[nn.Parameter, float]]:
        """Parameters besides the potential's that are trained, and their learning rates."""
        return []

    def notes(self) -> list[str]:
        """What else is logged of this epoch."""
        return []
