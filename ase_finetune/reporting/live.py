"""A picture of the epochs so far, kept up to date while a run trains in a notebook."""

from __future__ import annotations

import base64
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ase_finetune.reporting.markup import text
from ase_finetune.reporting.record import RunRecord
from ase_finetune.representations import html_table

#: Share of the time that may be spent on drawing.
_SHARE = 0.1

#: Columns of the table, where a stage has them, and their titles.
_SHOWN = {
    "epoch": "epoch",
    "valid_energy_mae": "valid energy, meV/atom",
    "valid_forces_mae": "valid forces, meV/Å",
    "valid_strain_median": "valid strain",
    "valid_rmsd_median": "valid RMSD, Å",
    "replay_energy_mae": "replay energy, meV/atom",
    "replay_forces_mae": "replay forces, meV/Å",
    "seconds": "s",
}

_ROWS = 8


def in_notebook() -> bool:
    """Whether the program runs in a notebook, which shows HTML."""
    interactive = sys.modules.get("IPython")
    shell = None if interactive is None else interactive.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class LivePicture:
    """Shows learning curves and the last epochs below the cell that runs, and replaces them after every epoch."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html: Any = HTML
        self._handle: Any = display(HTML("<em>training begins</em>"), display_id=True)
        self._rows: list[Mapping[str, Any]] = []
        self._drawn = -math.inf
        self._cost = 0.0

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Add a row of the history."""
        self._rows.append(row)
        if self._cost < _SHARE * (time.perf_counter() - self._drawn):
            self._show()

    def skip(self, rows: int) -> None:
        """Rows from before the run was interrupted are not shown again."""

    def close(self, failed: bool) -> None:
        """Show all epochs, unless showing them is what failed."""
        if not failed:
            self._show()

    def _show(self) -> None:
        start = time.perf_counter()
        self._handle.update(self._html(live_html(self._rows)))
        self._drawn = time.perf_counter()
        self._cost = self._drawn - start


def live_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """Learning curves and a table of the last epochs, of one stage after the other."""
    if not rows:
        return "<em>no epoch was completed</em>"
    last = [row for row in rows if row["stage"] == rows[-1]["stage"]]
    columns = {name: title for name, title in _SHOWN.items() if name == "epoch" or _is_known(last[-1].get(name))}
    cells = [[row.get(name, math.nan) for name in columns] for row in last[-_ROWS:]]
    table = html_table(f"last epochs: {last[-1]['stage']}", cells, header=list(columns.values()))
    return f"<div>{''.join(_pictures(last))}</div>{table}"


def _is_known(value: Any) -> bool:
    return isinstance(value, (int, float)) and not math.isnan(value)


def _pictures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    from ase_finetune.reporting.figures import Chart, own_style
    from ase_finetune.reporting.learning import learning_curves

    with own_style():
        charts = learning_curves(_unfinished(rows))
    panels = [panel for chart in charts if isinstance(chart, Chart) for panel in chart.panels]
    return [
        f'<img style="max-width:24em;display:inline" alt="{text(panel.alt)}" '
        f'src="data:image/png;base64,{base64.b64encode(panel.png).decode()}">'
        for panel in panels
    ]


def _unfinished(rows: Sequence[Mapping[str, Any]]) -> RunRecord:
    """As much of a record as is known while a stage trains."""
    before: dict[str, dict[str, Any]] = {}
    for name, value in rows[0].items() if rows[0]["epoch"] == 0 else ():
        known, _, measure = name.partition("_")
        before.setdefault(known, {})[measure] = value
    stage = {"stage": rows[0]["stage"], "before": before}
    return RunRecord({"stages": [stage]}, [dict(row) for row in rows if row["epoch"] > 0])
