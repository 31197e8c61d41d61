"""What a stage ended with, in numbers and in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ase_finetune.finetuning.tasks import Measured

# Measures whose change is reported, and what they are called.
_GAINS = {
    "forces_mae": "forces",
    "energy_mae": "energies",
    "stress_mae": "stress",
    "rmsd_median": "RMSD",
    "strain_median": "strain",
}


def gains(before: Measured | None, after: Measured | None) -> dict[str, float]:
    """The relative change of the validation errors by measure; of those that are known and were not zero."""
    if before is None or after is None:
        return {}
    old, new = before.to_dict(), after.to_dict()
    return {
        name: new[name] / old[name] - 1
        for name in _GAINS
        if old.get(name) and new.get(name) is not None and math.isfinite(new[name] / old[name])
    }


class Outcome(NamedTuple):
    """Weights of an epoch, what they gain on validation, and the rise of errors on old structures."""

    epoch: int
    gains: Mapping[str, float]
    forgetting: float | None


@dataclass(frozen=True)
class Kept:
    """What a stage ended with, and why.

    Attributes
    ----------
    kept
        The weights that were kept; epoch 0 is the model that the stage began with.
    epochs
        Epochs that were run.
    fraction
        1, or the share of the way from the pretrained weights to those of the epoch to which they were drawn back.
    estimated
        Whether forgetting is estimated from how far predictions moved.
    bound
        Largest rise of errors on old structures; ``None`` for no bound.
    given_up
        What would have been kept without the bound; ``None`` if it is the same.
    scores
        Relative change of the validation loss by epoch; NaN without validation.
    """

    kept: Outcome
    epochs: int
    fraction: float
    estimated: bool
    bound: float | None
    given_up: Outcome | None
    scores: Mapping[int, float]

    @property
    def unchanged(self) -> bool:
        """Whether the stage ended with the weights that it began with."""
        return self.kept.epoch == 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for metadata and report."""
        return {
            "epoch": self.kept.epoch,
            "epochs": self.epochs,
            "fraction": self.fraction,
            "unchanged": self.unchanged,
            "gains": dict(self.kept.gains),
            "forgetting": self.kept.forgetting,
            "forgetting_labelled": not self.estimated,
            "bound": self.bound,
            "sentence": self.sentence(),
        }

    def label(self) -> str:
        """What was kept, in a word or two."""
        if self.unchanged:
            return "unchanged"
        return f"kept epoch {self.kept.epoch}" + (f" drawn back to {self.fraction:.0%}" if self.fraction < 1 else "")

    def sentence(self) -> str:
        """What was kept and why, or what was given up and how to keep it."""
        if self.unchanged:
            return f"unchanged: {self._why_unchanged()}; keep='last' returns the last epoch"
        drawn = f", drawn back to {self.fraction:.0%} of the way from the pretrained weights"
        where = f"epoch {self.kept.epoch} of {self.epochs}{drawn if self.fraction < 1 else ''}"
        text = f"{where}: {self._effect(self.kept, self.bound)}"
        if self.given_up is None:
            return text
        effect = f"epoch {self.given_up.epoch}, {self._effect(self.given_up)}"
        return f"{text}; given up for the bound: {effect}{self._remedy()}"

    def _why_unchanged(self) -> str:
        if self.given_up is not None:
            effect = f"epoch {self.given_up.epoch}: {self._effect(self.given_up)}"
            return f"what was better on validation breaks the bound ({effect}){self._remedy()}"
        known = {epoch: score for epoch, score in self.scores.items() if not math.isnan(score)}
        if not known:
            return "no step could be made"
        epoch = min(known, key=lambda number: known[number])
        return (
            "no epoch was clearly better on validation than the model it started from "
            f"(validation loss: epoch {epoch} {_percent(known[epoch])}, the last one {_percent(known[max(known)])})"
        )

    def _remedy(self) -> str:
        rise = None if self.given_up is None else self.given_up.forgetting
        if rise is None or not 0 < rise < 1:
            return ""
        return f" (max_forgetting={math.ceil(100 * rise) / 100:g} allows it)"

    def _effect(self, outcome: Outcome, bound: float | None = None) -> str:
        parts = [f"{name} {_percent(outcome.gains[key])}" for key, name in _GAINS.items() if key in outcome.gains]
        texts = [f"validation {', '.join(parts)}" if parts else "no validation"]
        if outcome.forgetting is not None:
            limit = "" if bound is None else f" (bound {100 * bound:.3g} %)"
            texts.append(f"old structures {_percent(outcome.forgetting)}{limit}")
        return ", ".join(texts)


def _percent(change: float) -> str:
    """A relative change in per cent with its sign; one decimal where it is small."""
    percent = 100 * change
    return f"{percent:+.1f} %" if abs(percent) < 10 else f"{percent:+.0f} %"
