"""How far a training is, and how often it went wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ase_finetune.errors import NotFiniteError, TrainingError

#: Skipped steps of an epoch that are logged one by one.
_TOLD = 3


@dataclass
class Progress:
    """How far a training is.

    Attributes
    ----------
    epoch
        The epoch that is worked on, from 1.
    steps
        Iterations of it that are done.
    learning_rate
        With which it began.
    seconds
        Spent on it before it was last interrupted.
    replayed
        Replay batches used since the beginning.
    skipped, skipped_in_a_row
        Iterations of this epoch, and of the last ones, with a loss or gradient that was not finite.
    """

    epoch: int = 1
    steps: int = 0
    learning_rate: float = 0.0
    seconds: float = 0.0
    replayed: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def next_epoch(self) -> Progress:
        """The beginning of the next epoch."""
        return Progress(self.epoch + 1, replayed=self.replayed, skipped_in_a_row=self.skipped_in_a_row)

    def count(self, failures: Sequence[NotFiniteError], most: int, log: Callable[[str], object]) -> None:
        """Count an iteration whose updates failed, or none did: a single bad frame must not end a run.

        Raises
        ------
        TrainingError
            If ``most`` iterations in a row had a failure: the run itself has gone wrong.
        """
        if not failures:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= most:
            raise TrainingError(
                f"{self.skipped_in_a_row} steps in a row could not be made (max_skipped_steps), the last one because "
                f"{failures[0]}; the learning rate may be too large, or labels wrong"
            ) from failures[0]
        if self.skipped <= _TOLD:
            log(f"note: step {self.steps + 1} of epoch {self.epoch} was skipped: {failures[0]}")

    def notes(self) -> list[str]:
        """What has to be logged about the epoch."""
        return [f"{self.skipped} steps of this epoch were skipped"] if self.skipped > _TOLD else []
