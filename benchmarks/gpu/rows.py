"""Rows of measurements: appended to one file the moment they are known, and the table made of them."""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.science.storing import rounded

#: The one file of all rows: a JSON object a line, of which the last one of a name counts.
ROWS = "rows.jsonl"

#: Rows that need not be measured again: "wrong" is a result, too.
KNOWN = ("ok", "wrong")

#: What must be the same for a row to count as known when a folder is continued: the package's code, not that of the
#: benchmarks, in which a mistake may have been corrected.
SAME = ("device", "quick", "package", "card")

#: Rows about a stage: all names it has, how its process ended, how long it took.
PLANNED, PROCESS, STAGE = "(planned)", "(process)", "(stage)"

Row = dict[str, Any]


class Book:
    """The rows in a folder.

    Parameters
    ----------
    folder
        Is made if it does not exist.
    identity
        Goes into every row: card, versions, commit, device, ``run`` (which start of the program it was).
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / ROWS
        self.identity = dict(identity)

    def add(self, stage: str, name: str, status: str, **values: Any) -> Row:
        """Write a row: "begun", "ok", "wrong" (a check found an error), "failed" or "skipped"."""
        row = {"stage": stage, "name": name, "status": status, **rounded(values)}
        row |= {"date": time.strftime("%Y-%m-%d %H:%M:%S"), **self.identity}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())  # the machine may be taken away at any moment
        return row

    def rows(self) -> list[Row]:
        """The last row of each name, in the order in which the names came first."""
        return list({(row["stage"], row["name"]): row for row in read(self.path)}.values())

    def settled(self, stage: str) -> set[str]:
        """Names of a stage that need no work: results of the same code on the same card, and what failed in this run.

        A row that has begun and not ended counts as failed: its process died in it.
        """
        return {row["name"] for row in self.rows() if row["stage"] == stage and self._is_settled(row)}

    def unmeasured(self, stage: str) -> list[str]:
        """Planned names of a stage that this run has no row of and that are not settled."""
        rows = {row["name"]: row for row in self.rows() if row["stage"] == stage}
        planned = rows.get(PLANNED, {}).get("names", [])
        settled, run = self.settled(stage), self.identity.get("run")
        return [name for name in planned if name not in settled and rows.get(name, {}).get("run") != run]

    def _is_settled(self, row: Row) -> bool:
        if row["status"] in KNOWN:
            return all(row.get(key) == self.identity.get(key) for key in SAME)
        return row["status"] in ("begun", "failed") and row.get("run") == self.identity.get("run")


def read(path: Path) -> list[Row]:
    """All rows of a file; a last line that was not written to its end is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def line(row: Row) -> str:
    """A row for the terminal, 110 characters wide or a little more."""
    name = f"{row['stage']}: {row['name']}"
    return f"{name[:58]:58s} {_figures(row)}".rstrip()


def _figures(row: Row) -> str:
    status = row["status"]
    if status == "begun":
        return "DIED: its process ended in this row"
    if status in ("failed", "skipped"):
        return f"{status.upper() if status == 'failed' else status}: {str(row.get('reason', ''))[-150:]}"
    if row.get("ratio") is not None:
        goal = "" if row.get("goal") is None else f"  goal {row['goal']:g}"
        verdict = {True: " met", False: " NOT MET", None: ""}[row.get("met")]
        return f"{row['ours']:>9.4g} / {row['peer']:<9.4g} {row['unit']:8s} = {row['ratio']:.3f}{goal}{verdict}"
    if "errors" in row:
        errors = ", ".join(f"{name} {_number(value)}" for name, value in row["errors"].items())
        return f"{'WRONG' if status == 'wrong' else 'right'}: {errors}{_note(row)}"
    if "value" in row:
        return f"{_number(row['value'])} {row.get('unit', '')}{_note(row)}"
    return f"{'WRONG' if status == 'wrong' else 'done'}{_note(row)}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not finite" if value is None else str(value)


def _note(row: Row) -> str:
    return f"  ({row['short']})" if row.get("short") else ""


def table(rows: Iterable[Row]) -> str:
    """All rows by stage, and at the end how many there are of each kind and what was skipped."""
    rows = [row for row in rows if row["name"] != PLANNED and (row["name"], row["status"]) != (PROCESS, "ok")]
    counts, skipped = Counter(row["status"] for row in rows), defaultdict[tuple[str, str], list[str]](list)
    for row in rows:
        if row["status"] == "skipped":
            skipped[row["stage"], row.get("reason", "")].append(row["name"])
    parts = [line(row) for row in rows if row["status"] != "skipped"]
    if skipped:
        parts += ["", "skipped"]
        parts += [f"  {stage}: {'; '.join(names)}: {reason}" for (stage, reason), names in skipped.items()]
    parts += ["", ", ".join(f"{count} {status}" for status, count in counts.items()) or "no rows"]
    return "\n".join(parts)
