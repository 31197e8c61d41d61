"""What "no more than 3 % forgotten" means, and what keeps to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ase_finetune.continual import EWCPenalty
from ase_finetune.continual.trust_region import StrengthLaw, measured_every
from ase_finetune.errors import DataError
from ase_finetune.finetuning.state import State
from ase_finetune.finetuning.tasks import Measured
from ase_finetune.potentials.base import Potential

#: Mean absolute errors of universal potentials on structures like those they were trained on, meV/atom and meV/Å
#: (SevenNet-0 on MPtrj: 12 to 15, and 36 to 40). A deviation from labels that the pretrained model made itself is
#: judged beside them.
TYPICAL_ERRORS = {"energy_mae": 14.0, "forces_mae": 40.0}

_NAMES = {"energy_mae": ("energies", "meV/atom"), "forces_mae": ("forces", "meV/Å")}

# Errors below (in the same units) are rounding: the labels are the model's own.
_OWN_LABELS = 0.1


def relative_rise(
    now: Mapping[str, float | None],
    before: Mapping[str, float | None],
    *,
    own_labels: bool = False,
    measures: Sequence[str] = tuple(TYPICAL_ERRORS),
) -> float:
    """The largest relative rise of errors on old structures.

    Errors against labels of a reference rise from ``before`` to ``now``. Labels of the pretrained model itself measure
    how far predictions moved; that adds to the error they had, :data:`TYPICAL_ERRORS`, in quadrature.

    Parameters
    ----------
    now, before
        Errors by name, meV/atom and meV/Å; ``None`` without labels, as in :meth:`ase_finetune.metrics.Errors.to_dict`.
    own_labels
        Whether the pretrained model made the labels. It did in any case where the errors before are rounding.
    measures
        Those that are looked at.

    Returns
    -------
    0.03 for 3 %; NaN if nothing is labelled or an error is not a number.
    """
    rises = []
    for name in measures:
        old, new = before[name], now[name]
        if old is None:
            continue
        if new is None:
            return math.inf
        if own_labels or old < _OWN_LABELS:
            old, new = (math.hypot(TYPICAL_ERRORS[name], value) for value in (old, new))
        rises.append(new / old - 1)
    return max(rises, default=math.nan)


class ForgettingBound:
    """Holds the rise of the errors on old structures, over all stages of a run.

    Parameters
    ----------
    most
        Largest :func:`relative_rise`.
    before
        Errors of the pretrained potential on the watched structures, by name.
    pretrained
        Its parameters by name.
    penalty
        Whose strength is adapted; ``None`` without EWC.

    Raises
    ------
    DataError
        If the watched structures carry neither energies nor forces.
    """

    def __init__(
        self,
        most: float,
        before: Mapping[str, float | None],
        pretrained: Mapping[str, Tensor],
        penalty: EWCPenalty | None = None,
    ) -> None:
        self.most = most
        self._before, self._pretrained, self._penalty = before, pretrained, penalty
        if all(before[name] is None for name in TYPICAL_ERRORS):
            raise DataError("max_forgetting needs energies or forces on the replay structures that are watched")
        self._law = None if penalty is None else StrengthLaw(most, penalty.strength)

    def rise(self, errors: Measured | None) -> float:
        """How much the errors on the watched structures have risen."""
        return math.nan if errors is None else relative_rise(errors.to_dict(), self._before)

    def holds(self, errors: Measured | None) -> bool:
        """Whether the errors are within the bound."""
        return self.rise(errors) <= self.most

    def adapt(self, errors: Measured | None) -> None:
        """Adapt the strength of the penalty to the errors just measured."""
        if self._law is not None and self._penalty is not None:
            self._penalty.strength = self._law.follow(self.rise(errors))

    def measured_every(self, epochs: int, steps: int) -> int:
        """Steps between two measurements; those of an epoch if there is nothing to adapt."""
        return steps if self._law is None else measured_every(epochs, steps)

    @torch.no_grad()
    def draw_back(self, potential: Potential, weights: Mapping[str, Tensor], fraction: float) -> None:
        """Set the parameters to this fraction of the way from the pretrained ones to ``weights``."""
        for name, parameter in potential.native_parameters():
            parameter.copy_(torch.lerp(self._pretrained[name], weights[name], fraction))

    def describe(self) -> str:
        """What the bound is in the units of the history."""
        limits, typical = [], []
        for name, (what, unit) in _NAMES.items():
            old = self._before[name]
            if old is not None and old < _OWN_LABELS:
                error = TYPICAL_ERRORS[name]
                limits.append(f"{what} move by {error * math.sqrt((1 + self.most) ** 2 - 1):.3g} {unit}")
                typical.append(f"{error:g} {unit}")
            elif old is not None:
                limits.append(f"the error of {what} rise to {old * (1 + self.most):.3g} {unit}")
        beside = f" (added in quadrature to typical errors of {' and '.join(typical)})" if typical else ""
        return f"max_forgetting {self.most:g}: on old structures {' and '.join(limits)} at most{beside}"

    def add_to(self, state: State) -> None:
        """Note everything for a checkpoint."""
        if self._law is not None:
            state.values["bound"] = {"strength": self._law.strength, "last": self._law.last}

    def load_from(self, state: State) -> None:
        """Take over what was noted."""
        if self._law is not None and self._penalty is not None:
            values = state.values["bound"]
            self._law.strength, self._law.last = float(values["strength"]), float(values["last"])
            self._penalty.strength = self._law.strength
