"""The history of a run, cut into its stages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ase_finetune.reporting.measures import Array, column, number
from ase_finetune.reporting.record import RunRecord
from ase_finetune.reporting.sets import as_anchor

#: What stages are called in the report.
TITLES = {"frames": "labelled frames", "relaxations": "relaxations"}


@dataclass(frozen=True)
class Kept:
    """The weights that a stage ended with, as the run describes them; records of earlier versions say nothing.

    Attributes
    ----------
    fraction
        How far they are on the way from the pretrained weights to those of their epoch; below 1 they were drawn back
        to keep to the bound.
    forgetting
        Relative rise of the errors on old structures; NaN if it is not known.
    labelled
        Whether the rise was measured against reference labels, or estimated from how far predictions moved.
    bound
        The rise that was allowed; NaN without a bound.
    sentence
        The outcome in words; empty if it is not known.
    """

    fraction: float = 1.0
    forgetting: float = math.nan
    labelled: bool = False
    bound: float = math.nan
    sentence: str = ""


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes
    ----------
    name
        ``"frames"`` or ``"relaxations"``.
    rows
        Its part of the history.
    before, after
        Errors at the beginning (of the untouched model, or of the result of the stage before) and of the best
        weights, by set and measure.
    best_epoch
        The epoch whose weights were kept: 0 if no epoch was better than the beginning; ``None`` if the stage did not
        end.
    planned
        Epochs asked for; ``None`` if the options do not say.
    kept
        What more is known of the weights that were kept.
    unchanged
        Whether they are those of the beginning.
    """

    name: str
    rows: list[dict[str, Any]]
    before: Mapping[str, Mapping[str, Any]]
    after: Mapping[str, Mapping[str, Any]]
    best_epoch: int | None
    planned: int | None
    kept: Kept
    unchanged: bool

    @property
    def anchor(self) -> str:
        """In anchors and names of files."""
        return as_anchor(self.name)

    @property
    def title(self) -> str:
        """In the report."""
        return TITLES.get(self.name, self.name)

    @property
    def epochs(self) -> Array:
        """Epochs, with 0 for the beginning."""
        return np.concatenate([[0.0], column(self.rows, "epoch")])

    def curve(self, name: str, measure: str) -> Array:
        """A measure of a set from the beginning on; NaN where it is not known."""
        start = number((self.before.get(name) or {}).get(measure))
        return np.concatenate([[start], column(self.rows, f"{name}_{measure}")])


def stages(record: RunRecord) -> list[Stage]:
    """The stages of a run in their order; those without a single epoch, too, if their errors are known."""
    concluded = {str(item.get("stage")): item for item in record.metadata.get("stages") or []}
    names = list(dict.fromkeys([*concluded, *(_name(row) for row in record.history)]))
    return [_stage(record, name, concluded.get(name, {})) for name in names]


def _name(row: Mapping[str, Any]) -> str:
    """The stage of a row; the usual one where it is not named."""
    name = row.get("stage")
    return name if isinstance(name, str) else "frames"


def is_unchanged(record: RunRecord) -> bool:
    """Whether the result of a run is the model that it began with."""
    stated = record.metadata.get("unchanged")
    if isinstance(stated, bool):
        return stated
    found = stages(record)
    return bool(found) and all(stage.unchanged for stage in found)


def _stage(record: RunRecord, name: str, concluded: Mapping[str, Any]) -> Stage:
    config = record.metadata.get("config") or {}
    options = config.get("bptt") or {} if name == "relaxations" else config
    kept, planned = concluded.get("kept") or {}, options.get("epochs")
    best = concluded.get("best_epoch") if kept.get("epoch") is None else kept["epoch"]
    unchanged = kept.get("unchanged")
    return Stage(
        name=name,
        rows=[row for row in record.history if _name(row) == name],
        before=concluded.get("before") or {},
        after=concluded.get("after") or {},
        best_epoch=None if best is None else int(best),
        planned=None if planned is None else int(planned),
        kept=_kept(kept),
        unchanged=unchanged if isinstance(unchanged, bool) else best == 0,
    )


def _kept(values: Mapping[str, Any]) -> Kept:
    fraction = number(values.get("fraction"))
    return Kept(
        fraction=1.0 if math.isnan(fraction) else fraction,
        forgetting=number(values.get("forgetting")),
        labelled=values.get("forgetting_labelled") is True,
        bound=number(values.get("bound")),
        sentence=str(values.get("sentence") or ""),
    )
