"""The choice of the weights that are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ase_finetune.continual.trust_region import largest_fraction
from ase_finetune.finetuning.forgetting import Forgetting
from ase_finetune.finetuning.kept import Kept, Outcome, gains
from ase_finetune.finetuning.state import State, clones, copy_into, measured_from_json, measured_to_json
from ase_finetune.finetuning.tasks import Measured
from ase_finetune.potentials.base import Potential

#: With fewer validation examples than that, the lowest validation loss may be chance: later epochs are favoured.
FEW = 5


class Best:
    """The weights to keep, of all that were offered so far.

    Those of the lowest validation loss, if it is below that of the weights before the first epoch: with :data:`FEW`
    examples or more by more than the paired standard error of the difference. With fewer examples, an epoch is kept
    rather than an earlier one of a lower loss, unless that is lower by more than their paired error.

    Attributes
    ----------
    epoch
        The weights are from; 0 is the potential before training.
    errors
        On every set, with these weights.
    weights
        By name.

    Parameters
    ----------
    name
        In checkpoints.
    last
        Keep the last weights, whatever their loss.
    """

    def __init__(self, name: str, last: bool = False) -> None:
        self._name, self._last = name, last
        self.epoch = 0
        self.errors: dict[str, Measured | None] = {}
        self.weights: dict[str, Tensor] = {}
        #: Epoch of the lowest validation loss, and the validation errors then and before the first epoch.
        self.lowest_epoch = 0
        self._lowest: Measured | None = None
        self._start: Measured | None = None

    def begin(self, errors: dict[str, Measured | None], potential: Potential) -> None:
        """Take the weights before the first epoch."""
        self._start = self._lowest = errors["valid"]
        self._take(0, errors, potential)

    def offer(self, epoch: int, errors: dict[str, Measured | None], potential: Potential) -> bool:
        """Take the weights of an epoch if they are to be kept rather than those so far."""
        now, lowest, start = errors["valid"], self._lowest, self._start
        if now is not None and lowest is not None and start is not None:
            better = _is_better(now, start)
            if better and now.loss < lowest.loss:
                self.lowest_epoch, self._lowest = epoch, now
            elif not (self._last or (better and len(now.losses) < FEW and _is_close(now, lowest))):
                return False
        self._take(epoch, errors, potential)
        return True

    def _take(self, epoch: int, errors: dict[str, Measured | None], potential: Potential) -> None:
        self.epoch, self.errors = epoch, errors
        self.weights = clones(potential.native_parameters())

    def load_into(self, potential: Potential) -> None:
        """Give a potential these weights."""
        copy_into(potential.native_parameters(), self.weights)

    def add_to(self, state: State) -> None:
        """Note everything for a checkpoint."""
        state.add(self._name, self.weights.items())
        state.values[self._name] = {
            "epoch": self.epoch,
            "errors": measured_to_json(self.errors),
            "lowest_epoch": self.lowest_epoch,
            "compared": measured_to_json({"lowest": self._lowest, "start": self._start}),
        }

    def load_from(self, state: State, potential: Potential) -> None:
        """Take over what was noted."""
        values: dict[str, Any] = state.values[self._name]
        self.epoch, self.lowest_epoch = int(values["epoch"]), int(values["lowest_epoch"])
        self.errors = measured_from_json(values["errors"])
        compared = measured_from_json(values["compared"])
        self._lowest, self._start = compared["lowest"], compared["start"]
        self.weights = {name: value.to(potential.device) for name, value in state.group(self._name).items()}


class Selection:
    """Chooses the weights that a stage ends with, among those of all epochs and those it began with.

    Parameters
    ----------
    forgetting
        What the chosen weights have to keep to, if it has a bound; ``None`` where no old structures are watched.
    keep
        ``"best"`` or ``"last"``.

    Attributes
    ----------
    best
        The choice so far among weights that keep to the bound.
    initial
        Errors before the first epoch, on every set.
    """

    def __init__(self, forgetting: Forgetting | None, keep: str = "best") -> None:
        self._forgetting = forgetting
        self.best = Best("best", last=keep == "last")
        # The choice whether it keeps to the bound or not; the same where there is none.
        self._free = Best("free", last=keep == "last") if self._is_bounded else self.best
        self.initial: dict[str, Measured | None] = {}
        self._fraction = 1.0

    @property
    def _is_bounded(self) -> bool:
        return self._forgetting is not None and self._forgetting.most is not None

    def begin(self, errors: dict[str, Measured | None], potential: Potential) -> None:
        """Take the weights before the first epoch."""
        self.initial = errors
        # They keep to the bound: they are the pretrained ones, or an earlier stage's that did.
        for kept in {id(kept): kept for kept in (self.best, self._free)}.values():
            kept.begin(errors, potential)

    def score(self, errors: dict[str, Measured | None]) -> float:
        """The relative change of the validation loss since the beginning; NaN without validation examples."""
        now, start = errors["valid"], self.initial["valid"]
        return math.nan if now is None or start is None or not start.loss else now.loss / start.loss - 1

    def offer(self, epoch: int, errors: dict[str, Measured | None], potential: Potential, moved: bool = True) -> bool:
        """Keep the weights of an epoch if they are the choice so far and keep to the bound.

        Without validation those of the last epoch are kept, but not if no step could be made with them (``moved``).
        """
        if errors["valid"] is None and not moved:
            return False
        if self._free is self.best:
            return self.best.offer(epoch, errors, potential)
        self._free.offer(epoch, errors, potential)
        return self._holds(errors) and self.best.offer(epoch, errors, potential)

    def _holds(self, errors: dict[str, Measured | None]) -> bool:
        return self._forgetting is None or self._forgetting.holds(errors["replay"])

    def stops_early(self, done: int, patience: int) -> bool:
        """Whether the validation loss was no lower in so many epochs, of those that are done."""
        return done - self._free.lowest_epoch >= patience

    def keep_to_bound(
        self,
        potential: Potential,
        watched: Callable[[Potential], Measured | None],
        everything: Callable[[Potential], dict[str, Measured | None]],
    ) -> None:
        """Draw the best weights back towards the pretrained ones until they keep to the bound, if they do not.

        They are kept if they still are better than those that keep to it by themselves. Does nothing without a bound.

        Parameters
        ----------
        potential
            Its weights are changed.
        watched, everything
            Errors of a potential on the watched old structures, and on validation examples and those.
        """
        forgetting, free = self._forgetting, self._free
        if forgetting is None or forgetting.most is None or free.epoch == self.best.epoch:
            return

        def rise(fraction: float) -> float:
            forgetting.draw_back(potential, free.weights, fraction)
            return forgetting.rise(watched(potential))

        fraction = largest_fraction(rise, forgetting.most)
        if fraction == 0:
            return
        forgetting.draw_back(potential, free.weights, fraction)
        errors = everything(potential) | {"train": free.errors["train"]}
        if self._holds(errors) and self.best.offer(free.epoch, errors, potential):
            self._fraction = fraction

    def kept(self, rows: Sequence[dict[str, Any]]) -> Kept:
        """What was kept, and why.

        Parameters
        ----------
        rows
            The history of this stage.
        """
        forgetting = self._forgetting
        differ = self._free.epoch != self.best.epoch or self._fraction < 1
        return Kept(
            kept=self._outcome(self.best),
            epochs=len(rows),
            fraction=self._fraction,
            estimated=forgetting is not None and forgetting.is_estimated,
            bound=None if forgetting is None else forgetting.most,
            given_up=self._outcome(self._free) if differ else None,
            scores={row["epoch"]: row["score"] for row in rows},
        )

    def _outcome(self, weights: Best) -> Outcome:
        rise = math.nan if self._forgetting is None else self._forgetting.rise(weights.errors["replay"])
        gained = gains(self.initial["valid"], weights.errors["valid"])
        return Outcome(weights.epoch, gained, rise if math.isfinite(rise) else None)

    def add_to(self, state: State) -> None:
        """Note everything for a checkpoint."""
        self.best.add_to(state)
        state.values["initial"] = measured_to_json(self.initial)
        if self._free is not self.best:
            self._free.add_to(state)
        if self._forgetting is not None:
            self._forgetting.add_to(state)

    def load_from(self, state: State, potential: Potential) -> None:
        """Take over what was noted."""
        self.best.load_from(state, potential)
        self.initial = measured_from_json(state.values["initial"])
        if self._free is not self.best:
            self._free.load_from(state, potential)
        if self._forgetting is not None:
            self._forgetting.load_from(state)


def _is_better(now: Measured, start: Measured) -> bool:
    """Whether a validation loss is below that of the beginning, and not by chance where that can be judged."""
    gain = start.loss - now.loss
    return gain > (_paired_error(now, start) if len(now.losses) >= FEW else 0.0)


def _is_close(now: Measured, lowest: Measured) -> bool:
    """Whether a validation loss is above the lowest one by no more than their paired error."""
    return now.loss - lowest.loss <= _paired_error(now, lowest)


def _paired_error(one: Measured, other: Measured) -> float:
    """Standard error of the mean difference of two losses over the same examples; infinite for a single one."""
    differences = np.array(one.losses, dtype=float) - np.array(other.losses, dtype=float)
    known = differences[np.isfinite(differences)]
    return float(known.std(ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else math.inf
