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

#: Paired standard errors by which a validation loss is clearly another than that before the first epoch.
CLEARLY = 2.0

#: Share of the validation loss that is worth gaining.
WORTH = 0.02

#: Standard error of the loss of a single validation example, as a share of it: alone it has none that could be
#: computed. Losses of other epochs that differ by less than twice as much are taken for chance.
SINGLE = 0.05


class Best:
    """The weights to keep, of all that were offered so far.

    Those of the lowest validation loss among epochs that are clearly better than the weights before the first epoch: by
    more than :data:`CLEARLY` paired standard errors. With fewer examples than :data:`FEW` an epoch is kept rather than
    an earlier one of a lower loss, unless that is lower by more than their paired error. If no epoch is clearly better
    the last one is kept, for training says what validation cannot; unless validation excludes that it gains as much as
    :data:`WORTH`. The error of a single example is taken to be :data:`SINGLE`.

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
        #: The lowest validation loss among clearly better epochs: its epoch, 0 if there is none, and errors.
        self.lowest_epoch = 0
        self._lowest: Measured | None = None
        self._start: tuple[dict[str, Measured | None], dict[str, Tensor]] = {}, {}

    def begin(self, errors: dict[str, Measured | None], potential: Potential) -> None:
        """Take the weights before the first epoch."""
        self._start = errors, clones(potential.native_parameters())
        self.errors, self.weights = self._start

    def offer(self, epoch: int, errors: dict[str, Measured | None], potential: Potential) -> bool:
        """Take the weights of an epoch if they are to be kept rather than those so far."""
        now, start = errors["valid"], self._start[0]["valid"]
        if now is not None and start is not None:
            gain, error = start.loss - now.loss, CLEARLY * _paired_error(now, start, single=SINGLE * start.loss)
            better = gain > error
            if better and (self._lowest is None or now.loss < self._lowest.loss):
                self.lowest_epoch, self._lowest = epoch, now
            elif self._lowest is not None:
                close = (
                    better
                    and len(now.losses) < FEW
                    and now.loss - self._lowest.loss <= _paired_error(now, self._lowest, single=math.inf)
                )
                if not (close or self._last):
                    return False
            elif not (gain + error >= WORTH * start.loss or self._last):
                # No epoch was clearly better so far, and this one gains nothing to speak of.
                self.back_to_start()
                return False
        self.epoch, self.errors, self.weights = epoch, errors, clones(potential.native_parameters())
        return True

    def back_to_start(self) -> None:
        """Keep the weights before the first epoch."""
        self.epoch, (self.errors, self.weights) = 0, self._start

    def load_into(self, potential: Potential) -> None:
        """Give a potential these weights."""
        copy_into(potential.native_parameters(), self.weights)

    def add_to(self, state: State) -> None:
        """Note everything for a checkpoint."""
        errors, weights = self._start
        state.add(self._name, self.weights.items())
        state.add(f"{self._name} start", weights.items())
        state.values[self._name] = {
            "epoch": self.epoch,
            "errors": measured_to_json(self.errors),
            "start": measured_to_json(errors),
            "lowest_epoch": self.lowest_epoch,
            "lowest": measured_to_json({"valid": self._lowest}),
        }

    def load_from(self, state: State, potential: Potential) -> None:
        """Take over what was noted."""
        values: dict[str, Any] = state.values[self._name]
        self.epoch, self.lowest_epoch = int(values["epoch"]), int(values["lowest_epoch"])
        self.errors = measured_from_json(values["errors"])
        self._lowest = measured_from_json(values["lowest"])["valid"]
        self.weights, start = (
            {name: value.to(potential.device) for name, value in state.group(group).items()}
            for group in (self._name, f"{self._name} start")
        )
        self._start = measured_from_json(values["start"]), start


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
        if free.epoch == 0:  # what keeps to the bound is no better than what does not
            self.best.back_to_start()
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


def _paired_error(one: Measured, other: Measured, single: float) -> float:
    """Standard error of the mean difference of two losses over the same examples; ``single`` for a single example."""
    differences = np.array(one.losses, dtype=float) - np.array(other.losses, dtype=float)
    known = differences[np.isfinite(differences)]
    return float(known.std(ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else single
