"""How much was forgotten, and what keeps it within a bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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

# Most structures have errors far below the mean one: the median is a third of it for energies and half of it for
# forces. A deviation counts beside this share of the typical error; with it, the estimate is right in the median of
# 60 fine-tunings that were judged on labelled MPtrj frames, and within a factor of 2.5 in most (docs/mathematics.md).
_SHARE = 0.5


def relative_rise(now: Mapping[str, float | None], before: Mapping[str, float | None]) -> float:
    """The largest relative rise of errors on old structures.

    Errors against labels of a reference rise from ``before`` to ``now``. Labels of the pretrained model itself (errors
    ``before`` that are rounding) measure how far predictions moved, d; the rise of the labelled error is estimated as
    (sqrt((T/2)² + d²) - T/2) / T, with the typical error T of :data:`TYPICAL_ERRORS`.

    Parameters
    ----------
    now, before
        Errors by name, meV/atom and meV/Å; ``None`` without labels, as in :meth:`ase_finetune.metrics.Errors.to_dict`.

    Returns
    -------
    0.03 for 3 %; NaN if nothing is labelled or an error is not a number.
    """
    rises = []
    for name in TYPICAL_ERRORS:
        old, new = before[name], now[name]
        if old is None:
            continue
        if new is None:
            return math.inf
        if old < _OWN_LABELS:
            typical = TYPICAL_ERRORS[name]
            rises.append((math.hypot(_SHARE * typical, new) - _SHARE * typical) / typical)
        else:
            rises.append(new / old - 1)
    return max(rises, default=math.nan)


def largest_move(measure: str, most: float) -> float:
    """The deviation from the pretrained model's own labels for which :func:`relative_rise` is ``most``.

    Parameters
    ----------
    measure
        Of :data:`TYPICAL_ERRORS`.
    most
        0.03 for 3 %.
    """
    return TYPICAL_ERRORS[measure] * math.sqrt(most**2 + 2 * _SHARE * most)


class Forgetting:
    """Measures the rise of the errors on old structures over all stages of a run, and holds it where there is a bound.

    Parameters
    ----------
    most
        Largest :func:`relative_rise`; ``None`` for no bound.
    before
        Errors of the pretrained potential on the watched structures, by name.
    pretrained
        Its parameters by name.
    penalty
        Whose strength is adapted; ``None`` where none is to be.

    Raises
    ------
    DataError
        If the watched structures carry neither energies nor forces.
    """

    def __init__(
        self,
        most: float | None,
        before: Mapping[str, float | None],
        pretrained: Mapping[str, Tensor],
        penalty: EWCPenalty | None = None,
    ) -> None:
        self.most = most
        self._before, self._pretrained, self._penalty = before, pretrained, penalty
        if all(before[name] is None for name in TYPICAL_ERRORS):
            raise DataError("max_forgetting needs energies or forces on the replay structures that are watched")
        self._law = None if penalty is None or most is None else StrengthLaw(most, penalty.strength)

    def rise(self, errors: Measured | None) -> float:
        """How much the errors on the watched structures have risen."""
        return math.nan if errors is None else relative_rise(errors.to_dict(), self._before)

    def holds(self, errors: Measured | None) -> bool:
        """Whether the errors are within the bound."""
        return self.most is None or self.rise(errors) <= self.most

    def begin(self, errors: Measured | None, log: Callable[[str], object]) -> float:
        """The rise before training, zero but for a model that was fine-tuned before; a note if it is over the bound."""
        risen = self.rise(errors)
        if self.most is not None and risen > self.most:
            log(f"note: training begins with a model whose errors on old structures have risen by {risen:.1%} already")
        return risen

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

    @property
    def is_estimated(self) -> bool:
        """Whether the rise is estimated from how far predictions moved, instead of measured against labels."""
        return any(old is not None and old < _OWN_LABELS for old in (self._before[name] for name in TYPICAL_ERRORS))

    def describe(self) -> str:
        """What the bound is in the units of the history."""
        if self.most is None:
            return "forgetting: no bound; the rise of the errors on old structures is reported"
        limits = []
        for name, (what, unit) in _NAMES.items():
            old = self._before[name]
            if old is not None and old < _OWN_LABELS:
                limits.append(f"{what} move by {largest_move(name, self.most):.3g} {unit}")
            elif old is not None:
                limits.append(f"the error of {what} rises to {old * (1 + self.most):.3g} {unit}")
        how = ", where typical errors are estimated to rise by as much" if self.is_estimated else ""
        return f"forgetting: bound {self.most:.1%}; on old structures {' and '.join(limits)} at most{how}"

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
