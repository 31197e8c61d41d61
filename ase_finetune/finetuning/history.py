"""What a run has to say: its log lines and the table of its epochs."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ase_finetune.metrics import Errors

#: Sets whose errors each epoch reports. Replay tells what is forgotten.
SETS = ("train", "valid", "replay")
_MEASURES = ("loss", "energy_mae", "forces_mae", "stress_mae", "slope")


class Log:
    """Lines told to the user and kept for the files.

    Parameters
    ----------
    verbose
        Print the lines (above any progress bar) besides keeping them.
    """

    def __init__(self, verbose: bool = True) -> None:
        self.verbose = verbose
        self.lines: list[str] = []

    def __call__(self, text: str) -> None:
        self.lines.append(text)
        if self.verbose:
            tqdm.write(text, file=sys.stdout)

    def bar(self, total: int, what: str) -> tqdm[Any]:
        """A progress bar, shown on terminals only."""
        return tqdm(total=total, desc=what, leave=False, disable=None if self.verbose else True)


def epoch_row(epoch: int, errors: Mapping[str, Errors | None], **values: float) -> dict[str, Any]:
    """One line of the history: ``<set>_<measure>`` for every set, and what else is given."""
    row: dict[str, Any] = {"epoch": epoch, **values}
    for name in SETS:
        found = errors.get(name)
        for measure in _MEASURES:
            row[f"{name}_{measure}"] = math.nan if found is None else getattr(found, measure)
    return row


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the history as CSV: energies in meV/atom, forces in meV/Å, stress in kbar."""
    partial = path.with_name(path.name + ".part")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def header_line() -> str:
    """Column titles of :func:`epoch_line`."""
    groups = "".join(f"{name + '  E meV/at  F meV/Å':>26s}" for name in SETS)
    return f"{'epoch':>5s}{groups}{'penalty/loss':>14s}{'lr':>10s}{'s':>7s}"


def epoch_line(row: Mapping[str, Any], best: bool) -> str:
    """One epoch for the terminal; a star marks the best so far."""
    groups = "".join(f"{_number(row[f'{n}_energy_mae'])}{_number(row[f'{n}_forces_mae'])}" for n in SETS)
    ratio = row["penalty"] / row["train_loss"] if row["train_loss"] else math.nan
    tail = f"{ratio:14.3g}{row['learning_rate']:10.2g}{row['seconds']:7.0f}"
    return f"{row['epoch']:5d}{groups}{tail}{' *' if best else ''}"


def _number(value: float) -> str:
    return f"{'-':>13s}" if math.isnan(value) else f"{value:13.2f}"


def comparison_table(before: Mapping[str, Errors], after: Mapping[str, Errors]) -> str:
    """Errors of every set before and after, for the end of a run."""
    measures = (
        ("energy_mae", "energy MAE, meV/atom"),
        ("forces_mae", "force MAE, meV/Å"),
        ("stress_mae", "stress MAE, kbar"),
        ("slope", "softening slope"),
    )
    lines = [f"  {'':12s}{'':24s}{'before':>10s}{'after':>10s}{'change':>9s}"]
    for name in before:
        for measure, title in measures:
            old, new = getattr(before[name], measure), getattr(after[name], measure)
            if math.isnan(old) or math.isnan(new):
                continue
            digits = 3 if measure == "slope" else 2
            # Errors on the model's own labels start at rounding noise, which is no measure for a change.
            change = f"{100 * (new / old - 1):+8.1f}%" if round(old, digits) else f"{'':>9s}"
            lines.append(f"  {name:12s}{title:24s}{old:10.{digits}f}{new:10.{digits}f}{change}")
    return "\n".join(lines)
