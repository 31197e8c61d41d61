"""What a run has to say: its log lines and the table of its epochs."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm import tqdm

from ase_finetune.representations import html_table

#: Sets whose errors each epoch reports. Replay shows what is forgotten.
SETS = ("train", "valid", "replay")


@dataclass(frozen=True)
class Columns:
    """What a kind of stage keeps and shows of the errors of each set.

    Attributes
    ----------
    kept
        For each of :data:`SETS`, the measures of the history.
    shown
        For each set, the measures on the terminal, and the heading and digits of each.
    penalty
        Whether the EWC penalty is shown.
    """

    kept: Mapping[str, Sequence[str]]
    shown: Mapping[str, Sequence[tuple[str, str, int]]]
    penalty: bool = False


_FRAME_KEPT = ("loss", "energy_mae", "forces_mae", "stress_mae", "slope")
_FRAME_SHOWN = (("energy_mae", "E meV/at", 2), ("forces_mae", "F meV/Å", 1))
_STRESS_SHOWN = ("stress_mae", "S kbar", 2)
FRAME_COLUMNS = Columns(dict.fromkeys(SETS, _FRAME_KEPT), dict.fromkeys(SETS, _FRAME_SHOWN))
#: Where stresses are trained on.
STRESS_COLUMNS = Columns(dict.fromkeys(SETS, _FRAME_KEPT), dict.fromkeys(SETS, (*_FRAME_SHOWN, _STRESS_SHOWN)))

RELAXATION_COLUMNS = Columns(
    {
        "train": ("loss", "rmsd_median", "strain_median", "skipped"),
        "valid": (
            "loss",
            "rmsd_median",
            "strain_median",
            "delta_q_median",
            "volume_mae",
            "steps_median",
            "right_basin",
            "converged",
            "failed",
            "total",
        ),
        "replay": _FRAME_KEPT,
    },
    {
        "train": (("strain_median", "strain", 4), ("rmsd_median", "RMSD Å", 4)),
        "valid": (("strain_median", "strain", 4), ("rmsd_median", "RMSD Å", 4), ("right_basin", "basin", 0)),
        "replay": _FRAME_SHOWN,
    },
)


class Watcher(Protocol):
    """Who wants to know of every epoch: a logger, a live picture."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Called with each row of the history, and before the first epoch of a stage with that of epoch 0."""

    def skip(self, rows: int) -> None:
        """Called when a run goes on, with the number of rows that were logged before."""

    def close(self, failed: bool) -> None:
        """Called when the run has ended, or when this watcher has failed."""


class Log:
    """Lines printed for the user and kept for the files.

    Parameters
    ----------
    verbose
        0 keeps the lines, 1 prints them too (above any progress bar), 2 prints details as well.
    """

    def __init__(self, verbose: int = 1) -> None:
        self.verbose = int(verbose)
        self.lines: list[str] = []
        #: Get the row of every epoch.
        self.watchers: list[Watcher] = []

    def __call__(self, text: str) -> None:
        self.lines.append(text)
        self._print(text, 1)

    def detail(self, text: str) -> None:
        """Print what only those who asked for details want to know; it is not kept."""
        self._print(f"  {text}", 2)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Print, as a detail, how long something took."""
        start = time.perf_counter()
        yield
        self.detail(f"{what}: {time.perf_counter() - start:.1f} s")

    def epoch(self, row: Mapping[str, Any], columns: Columns, best: bool) -> None:
        """Log an epoch, for watchers too."""
        self(epoch_line(row, columns, best))
        for watcher in list(self.watchers):
            try:
                watcher.epoch(row)
            except Exception as error:  # noqa: BLE001  # what is only shown must not end what was trained for hours
                self(f"note: {type(watcher).__name__} gets no further epochs: {error!r}")
                self.watchers.remove(watcher)
                self._close(watcher, failed=True)

    def skip(self, rows: int) -> None:
        """Let watchers know that a run goes on."""
        for watcher in self.watchers:
            watcher.skip(rows)

    def end(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let watchers know that nothing more comes, and whether an error is why; as an exit of a ``with``."""
        while self.watchers:
            self._close(self.watchers.pop(), failed=kind is not None)

    def bar(self, total: int, what: str, done: int = 0) -> tqdm[Any]:
        """A progress bar, shown on terminals only, and not for what is done at once."""
        hidden = None if self.verbose else True
        return tqdm(total=total, initial=done, desc=what, leave=False, delay=_AT_ONCE, disable=hidden)

    def _close(self, watcher: Watcher, failed: bool) -> None:
        try:
            watcher.close(failed)
        except Exception as error:  # noqa: BLE001  # as for epochs
            self(f"note: {type(watcher).__name__} could not be closed: {error!r}")

    def _print(self, text: str, level: int) -> None:
        if self.verbose >= level:
            tqdm.write(text, file=sys.stdout)


#: Seconds that nobody needs a progress bar for.
_AT_ONCE = 0.5


class History(list[dict[str, Any]]):
    """The epochs of a run, one dictionary each; in a notebook a table."""

    def _repr_html_(self) -> str:
        names = list(dict.fromkeys(name for row in self for name in row))
        return html_table("History", [[row.get(name, "") for name in names] for row in self], header=names)


def epoch_row(epoch: int, errors: Mapping[str, Any], columns: Columns, **values: float) -> dict[str, Any]:
    """One line of the history: ``<set>_<measure>`` for every set, and what else is given."""
    row: dict[str, Any] = {"epoch": epoch, **values}
    for name, measures in columns.kept.items():
        found = errors.get(name)
        for measure in measures:
            row[f"{name}_{measure}"] = math.nan if found is None else getattr(found, measure)
    return row


def header_line(columns: Columns) -> str:
    """Column titles of :func:`epoch_line`, in two lines."""
    above, titles = f"{'':5s}", f"{'epoch':>5s}"
    for name, shown in columns.shown.items():
        above += f"{name:>{_FIRST}s}" + " " * (_NEXT * (len(shown) - 1))
        titles += "".join(f"{title:>{_FIRST if k == 0 else _NEXT}s}" for k, (_, title, _) in enumerate(shown))
    titles += f"{'forgotten %':>13s}{'loss %':>9s}" + (f"{'penalty/loss':>14s}" if columns.penalty else "")
    return f"{above.rstrip()}\n{titles}{'lr':>10s}{'s':>6s}"


def epoch_line(row: Mapping[str, Any], columns: Columns, best: bool) -> str:
    """One epoch for the terminal; a star marks the best so far.

    After the errors of each set: the rise of errors on old structures and the change of the validation loss, in per
    cent, the penalty over the loss, learning rate, seconds.
    """
    groups = "".join(
        _number(row[f"{name}_{measure}"], _FIRST if k == 0 else _NEXT, digits)
        for name, shown in columns.shown.items()
        for k, (measure, _, digits) in enumerate(shown)
    )
    judged = _number(100 * row["forgetting"], 13, 1) + _number(100 * row["score"], 9, 1)
    if columns.penalty:
        ratio = row["penalty"] / row["train_loss"] if row["train_loss"] else math.nan
        judged += f"{'-':>14s}" if math.isnan(ratio) else f"{ratio:14.2g}"
    return f"{row['epoch']:5d}{groups}{judged}{row['learning_rate']:10.2g}{row['seconds']:6.0f}{' *' if best else ''}"


#: Widths of the first column of a set, and of its further ones.
_FIRST, _NEXT = 10, 9


def _number(value: float, width: int, digits: int) -> str:
    return f"{'-':>{width}s}" if math.isnan(value) else f"{value:{width}.{digits}f}"


#: Measures of the final table: attribute, title, digits. Those a set does not have are left out.
_COMPARED = (
    ("energy_mae", "energy MAE, meV/atom", 2),
    ("forces_mae", "force MAE, meV/Å", 2),
    ("stress_mae", "stress MAE, kbar", 2),
    ("slope", "softening slope", 3),
    ("strain_median", "strain, median", 4),
    ("rmsd_median", "RMSD, median, Å", 4),
    ("delta_q_median", "Delta Q, median", 3),
    ("volume_mae", "volume MAE, %", 2),
    ("steps_median", "steps, median", 0),
)

#: Numbers of relaxations, out of their total.
_COUNTED = (("right_basin", "in the right basin"), ("failed", "relaxations failed"))


def comparison_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Errors of every set before and after, for the end of a run."""
    lines = [f"  {'':12s}{'':24s}{'before':>10s}{'after':>10s}{'change':>9s}"]
    for name in before:
        for measure, title, digits in _COMPARED:
            old, new = getattr(before[name], measure, math.nan), getattr(after[name], measure, math.nan)
            if math.isnan(old) or math.isnan(new):
                continue
            # Errors on the model's own labels start at rounding noise, which is no measure for a change.
            change = f"{100 * (new / old - 1):+8.1f}%" if round(old, digits) else f"{'':>9s}"
            lines.append(f"  {name:12s}{title:24s}{old:10.{digits}f}{new:10.{digits}f}{change}")
        for count, title in _COUNTED:
            if hasattr(before[name], count):
                old, new = (f"{getattr(errors, count)} of {errors.total}" for errors in (before[name], after[name]))
                lines.append(f"  {name:12s}{title:24s}{old:>10s} {new:>9s}")
    return "\n".join(lines)
