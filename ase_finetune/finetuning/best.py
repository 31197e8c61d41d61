"""The choice of the weights that are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ase_finetune.continual.trust_region import largest_fraction
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.forgetting import ForgettingBound
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.state import State, clones, copy_into, measured_from_json, measured_to_json
from ase_finetune.finetuning.tasks import Measured, Task
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
    weights
        By name.

    Parameters
    ----------
    name
        In checkpoints.
    """

    def __init__(self, name: str = "best") -> None:
        self._name = name
        self.epoch = 0
        self.score = math.inf
        self.errors: dict[str, Measured | None] = {}
        self.weights: dict[str, Tensor] = {}

    def keep_if_better(
        self, epoch: int, score: float | None, errors: dict[str, Measured | None], potential: Potential
    ) -> bool:
        """Keep the weights of the potential if the score is lower; without a score the last ones are kept."""
        if score is not None and not score < self.score:
            return False
        self.score = self.score if score is None else score
        self.epoch, self.errors = epoch, errors
        self.weights = clones(potential.native_parameters())
        return True

    def load_into(self, potential: Potential) -> None:
        """Give a potential the best weights."""
        copy_into(potential.native_parameters(), self.weights)

    def add_to(self, state: State) -> None:
        """Note everything for a checkpoint."""
        state.add(self._name, self.weights.items())
        state.values[self._name] = {"epoch": self.epoch, "score": self.score, "errors": measured_to_json(self.errors)}

    def load_from(self, state: State, potential: Potential) -> None:
        """Take over what was noted."""
        values: dict[str, Any] = state.values[self._name]
        self.epoch, self.score = int(values["epoch"]), float(values["score"])
        self.errors = measured_from_json(values["errors"])
        self.weights = {name: value.to(potential.device) for name, value in state.group(self._name).items()}


class Selection:
    """Chooses the weights that a stage ends with, among those of all epochs and those it began with.

    Parameters
    ----------
    task
        By whose validation loss they are judged.
    config
        The options.
    bound
        What the chosen weights have to keep to; ``None`` for no bound.

    Attributes
    ----------
    best
        The best so far that keep to the bound.
    initial
        Errors before the first epoch, on every set.
    """

    def __init__(self, task: Task, config: FinetuneConfig, bound: ForgettingBound | None) -> None:
        self._task, self._config, self._bound = task, config, bound
        self.best = Best()
        self.initial: dict[str, Measured | None] = {}
        # The best ones whether they keep to the bound or not.
        self._free = Best("free")

    def begin(self, errors: dict[str, Measured | None], potential: Potential) -> float | None:
        """Take the weights before the first epoch; returns their score."""
        self.initial = errors
        score = self.score(errors)
        # They keep to the bound: they are the pretrained ones, or an earlier stage's that did.
        for kept in (self.best, self._free):
            kept.keep_if_better(0, score, errors, potential)
        return score

    def score(self, errors: dict[str, Measured | None]) -> float | None:
        """Validation loss plus, where forgetting is fought, the weighted rise of what replay measures.

        Without validation examples there is nothing to choose by. Within a bound only the validation loss counts: the
        bound says what forgetting is worth.
        """
        valid, replay, before = errors["valid"], errors["replay"], self.initial["replay"]
        if valid is None:
            return None
        fights = self._config.uses_replay or self._config.uses_ewc
        if not fights or self._bound is not None or replay is None or before is None:
            return valid.loss
        return valid.loss + self._config.replay_weight * max(0.0, self._task.forgetting(replay, before))

    def keep_if_better(
        self, epoch: int, errors: dict[str, Measured | None], potential: Potential, moved: bool = True
    ) -> bool:
        """Keep the weights of an epoch if they are better and keep to the bound.

        Without validation those of the last epoch are kept, but not if no step could be made with them (``moved``).
        """
        score = self.score(errors)
        if score is None and not moved:
            return False
        if self._bound is None:
            return self.best.keep_if_better(epoch, score, errors, potential)
        self._free.keep_if_better(epoch, score, errors, potential)
        return self._bound.holds(errors["replay"]) and self.best.keep_if_better(epoch, score, errors, potential)

    def stops_early(self, done: int) -> bool:
        """Whether so many epochs are enough: the last ones were no better, and it was asked for."""
        patience = self._config.early_stopping
        last = self.best.epoch if self._bound is None else max(self.best.epoch, self._free.epoch)
        return patience is not None and done - last >= patience

    def keep_to_bound(
        self,
        potential: Potential,
        watched: Callable[[Potential], Measured | None],
        everything: Callable[[Potential], dict[str, Measured | None]],
        log: Log,
    ) -> None:
        """Draw the best weights back towards the pretrained ones until they keep to the bound, if they do not.

        They are kept if they still are better than those that keep to it by themselves. Does nothing without a bound.

        Parameters
        ----------
        potential
            Its weights are changed.
        watched, everything
            Errors of a potential on the watched old structures, and on validation examples and those.
        log
            Told in one line.
        """
        bound, free = self._bound, self._free
        if bound is None:
            return
        before = bound.rise(free.errors["replay"])
        found = f"max_forgetting: with the weights of epoch {free.epoch} errors on old structures rise by {before:.1%}"
        if free.epoch == self.best.epoch:
            log(f"{found}, which keeps to it")
            return

        def rise(fraction: float) -> float:
            bound.draw_back(potential, free.weights, fraction)
            return bound.rise(watched(potential))

        fraction = largest_fraction(rise, bound.most)
        bound.draw_back(potential, free.weights, fraction)
        errors = everything(potential)
        after = bound.rise(errors["replay"])
        kept = fraction > 0 and self.keep_if_better(free.epoch, errors | {"train": free.errors["train"]}, potential)
        outcome = "and are kept" if kept else f"where those of epoch {self.best.epoch} are better, which are kept"
        log(
            f"{found}; they were drawn back to {fraction:.1%} of their way from the pretrained ones (rise {after:.1%}) "
            f"{outcome}"
        )

    def add_to(self, state: State) -> None:
        """Note everything for a checkpoint."""
        self.best.add_to(state)
        state.values["initial"] = measured_to_json(self.initial)
        if self._bound is not None:
            self._free.add_to(state)
            self._bound.add_to(state)

    def load_from(self, state: State, potential: Potential) -> None:
        """Take over what was noted."""
        self.best.load_from(state, potential)
        self.initial = measured_from_json(state.values["initial"])
        if self._bound is not None:
            self._free.load_from(state, potential)
            self._bound.load_from(state)
