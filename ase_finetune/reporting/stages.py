"""The history of a run, cut into its stages."""

from __future__ import annotations

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
        0 if no epoch was better than the beginning; ``None`` if the stage did not end.
    planned
        Epochs asked for; ``None`` if the options do not tell.
    """

    name: str
    rows: list[dict[str, Any]]
    before: Mapping[str, Mapping[str, Any]]
    after: Mapping[str, Mapping[str, Any]]
    best_epoch: int | None
    planned: int | None

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
    """The stage of a row; the usual one where it is not told."""
    name = row.get("stage")
    return name if isinstance(name, str) else "frames"


def _stage(record: RunRecord, name: str, concluded: Mapping[str, Any]) -> Stage:
    config = record.metadata.get("config") or {}
    options = config.get("bptt") or {} if name == "relaxations" else config
    best, planned = concluded.get("best_epoch"), options.get("epochs")
    return Stage(
        name=name,
        rows=[row for row in record.history if _name(row) == name],
        before=concluded.get("before") or {},
        after=concluded.get("after") or {},
        best_epoch=None if best is None else int(best),
        planned=None if planned is None else int(planned),
    )
