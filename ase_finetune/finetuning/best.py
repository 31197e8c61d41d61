"""The choice of the weights that are kept."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ase_finetune.finetuning.state import State, clones, copy_into, measured_from_json, measured_to_json
from ase_finetune.finetuning.tasks import Measured
from ase_finetune.potentials.base import Potential


class Best:
    """The weights with the lowest score so far.

    Attributes
    ----------
    epoch
        They are from; 0 is the potential before training.
    score
        The lowest so far.
    errors
        Theirs, on every set.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.score = math.inf
        self.errors: dict[str, Measured | None] = {}
        self._weights: dict[str, Tensor] = {}

    def keep_if_better(
        self, epoch: int, score: float | None, errors: dict[str, Measured | None], potential: Potential
    ) -> bool:
        """Keep the weights of the potential if the score is lower; without a score the last ones are kept."""
        if score is not None and not score < self.score:
            return False
        self.score = self.score if score is None else score
        self.epoch, self.errors = epoch, errors
        self._weights = clones(potential.native_parameters())
        return True

    def load_into(self, potential: Potential) -> None:
        """Give a potential the best weights."""
        copy_into(potential.native_parameters(), self._weights)

    def add_to(self, state: State) -> None:
        """Note everything for a checkpoint."""
        state.add("best", self._weights.items())
        state.values["best"] = {"epoch": self.epoch, "score": self.score, "errors": measured_to_json(self.errors)}

    def load_from(self, state: State, potential: Potential) -> None:
        """Take over what was noted."""
        values: dict[str, Any] = state.values["best"]
        self.epoch, self.score = int(values["epoch"]), float(values["score"])
        self.errors = measured_from_json(values["errors"])
        self._weights = {name: value.to(potential.device) for name, value in state.group("best").items()}
