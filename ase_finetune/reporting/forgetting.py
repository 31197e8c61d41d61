"""How much a run forgot, on the scale of the errors that universal potentials have anyway."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ase_finetune.reporting.measures import SetErrors, lost, number, set_errors
from ase_finetune.reporting.record import AFTER, BEFORE, FrameRecord, RunRecord
from ase_finetune.reporting.sets import is_watched, kept
from ase_finetune.reporting.stages import is_unchanged, stages

#: Mean absolute errors of universal potentials, meV/Å and meV/atom. How far predictions moved from labels of the
#: pretrained model itself is judged beside them.
TYPICAL_ERRORS = {"forces": 40.0, "energy": 14.0}

# Most structures have smaller errors than the mean one: a deviation adds to this share of the typical error.
_SHARE = 0.5

#: Per cent. A smaller rise is negligible; up to the bound of the run, or else this one, it is small.
NEGLIGIBLE, USUAL_BOUND = 1.0, 5.0


@dataclass(frozen=True)
class Forgotten:
    """The rise of the errors on old structures.

    Attributes
    ----------
    percent
        By how much; infinite where predictions were lost.
    bound
        What the run allowed, per cent; NaN if it set no bound.
    labelled
        Whether the rise is of errors against reference labels. Otherwise it is estimated from the distance d to the
        pretrained predictions, beside :data:`TYPICAL_ERRORS` T: (sqrt((T/2)² + d²) - T/2) / T.
    """

    percent: float
    bound: float
    labelled: bool

    @property
    def word(self) -> str:
        """``"negligible"``, ``"small"`` or ``"large"``."""
        if self.percent < NEGLIGIBLE:
            return "negligible"
        return "small" if self.percent <= (USUAL_BOUND if math.isnan(self.bound) else self.bound) else "large"


def forgotten(record: RunRecord) -> Forgotten | None:
    """What a run forgot, as it measured it itself, or else from its record; ``None`` if it watched nothing."""
    ended = [stage.kept for stage in stages(record)]
    known = [item for item in ended if math.isfinite(item.forgetting)]
    bound = next((item.bound for item in reversed(ended) if math.isfinite(item.bound)), _bound(record))
    if known:
        return Forgotten(100 * known[-1].forgetting, 100 * bound, known[-1].labelled)
    watched = next((frames for frames in kept(record) if is_watched(frames)), None)
    if watched is None:
        return None
    percent = 0.0 if is_unchanged(record) else _rise(watched)
    return None if math.isnan(percent) else Forgotten(percent, 100 * bound, not watched.own_labels)


def _bound(record: RunRecord) -> float:
    return number((record.metadata.get("config") or {}).get("max_forgetting"))


def _rise(frames: FrameRecord) -> float:
    """The largest relative rise, of forces and energies, per cent; NaN without labels."""
    before, after = set_errors(frames, BEFORE), set_errors(frames, AFTER)
    rises = [math.inf if lost(frames, what) else _rise_of(frames, what, before, after) for what in TYPICAL_ERRORS]
    return max((rise for rise in rises if not math.isnan(rise)), default=math.nan)


def _rise_of(frames: FrameRecord, what: str, before: SetErrors, after: SetErrors) -> float:
    was, now = getattr(before, what), getattr(after, what)
    if frames.own_labels:
        typical = TYPICAL_ERRORS[what]
        return 100 * (math.hypot(_SHARE * typical, now) / typical - _SHARE)
    return 100 * (now / was - 1) if was > 0 else math.nan
