"""All that was found, as a table for terminals, for notebooks, and as plain values."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ase_finetune.analysis.validation.results import GRAVITY, CheckResult, Quantity, Verdict, worst

#: Smaller numbers, in any unit of the table, are rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Row:
    """A line of the table: a quantity before and after.

    Attributes
    ----------
    quantity
        After.
    before
        Of the calculator compared with; ``None`` without one, or if it does not have this number.
    """

    quantity: Quantity
    before: Quantity | None

    @property
    def change(self) -> float:
        """After minus before; NaN if one of them is missing."""
        return float("nan") if self.before is None else self.quantity.value - self.before.value


@dataclass(frozen=True)
class Validation:
    """What all checks found.

    Attributes
    ----------
    results
        Of the calculator, in the order the checks were made.
    against
        Of the calculator it is compared with, in the same order; ``None`` without one.
    """

    results: list[CheckResult]
    against: list[CheckResult] | None = None

    @property
    def verdict(self) -> Verdict:
        """The gravest of all."""
        return worst([result.verdict for result in self.results])

    @property
    def passed(self) -> bool:
        """Whether something could be judged and no check failed; suspicious ones are for you to judge."""
        return self.verdict not in ("failed", "not judged")

    def result(self, check: str, structure: str | None = None) -> CheckResult:
        """The result of a check.

        Parameters
        ----------
        check
            Its name.
        structure
            Name of the structure; the first one if ``None``.

        Raises
        ------
        KeyError
            If there is none.
        """
        for item in self.results:
            if item.check == check and structure in (None, item.structure):
                return item
        raise KeyError(f"no result of {check!r}" + (f" for {structure!r}" if structure else ""))

    def rows(self, index: int) -> list[Row]:
        """The quantities of one of the results, with those before.

        Parameters
        ----------
        index
            Position of the result.
        """
        before = None if self.against is None else self.against[index]
        return [
            Row(item, None if before is None else before.quantity(item.name)) for item in self.results[index].quantities
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; numbers that are not finite become ``None``."""
        return {
            "verdict": self.verdict,
            "passed": self.passed,
            "results": [item.to_dict() for item in self.results],
            "against": None if self.against is None else [item.to_dict() for item in self.against],
        }

    def __str__(self) -> str:
        lines = [_line(["", *self._titles()])]
        for index, result in enumerate(self.results):
            lines += ["", f"{result.structure}: {result.check}" + (f" ({result.note})" if result.note else "")]
            lines += [f"  {text}" for text in self._remarks(index)]
            for row in self.rows(index):
                lines.append(_line(self._cells(row)))
                if row.quantity.why:
                    lines.append(f"      {row.quantity.why}")
            if result.normal:
                lines.append(f"  {result.normal}")
        return "\n".join([*lines, "", self._conclusion()])

    def __repr__(self) -> str:
        return f"<Validation: {self._conclusion()}>"

    def _repr_html_(self) -> str:
        return "".join(self._html())

    def _titles(self) -> list[str]:
        return (
            ["value", "unit", "verdict"] if self.against is None else ["before", "after", "change", "unit", "verdict"]
        )

    def _cells(self, row: Row) -> list[str]:
        item = row.quantity
        verdict = "" if item.verdict == "not judged" else item.verdict
        if self.against is None:
            return [item.name, _number(item.value), item.unit, verdict]
        before = _number(float("nan") if row.before is None else row.before.value)
        if row.before is not None and GRAVITY[row.before.verdict] > GRAVITY["ok"]:
            before += "!"
        return [item.name, before, _number(item.value), _number(row.change, sign=True), item.unit, verdict]

    def _remarks(self, index: int) -> Iterator[str]:
        """Why there are no numbers, of one calculator or both."""
        sides = (
            [("", self.results[index])]
            if self.against is None
            else [
                ("before: ", self.against[index]),
                ("after: ", self.results[index]),
            ]
        )
        texts = [(side, _remark(result)) for side, result in sides]
        if len(texts) == 2 and texts[0][1] == texts[1][1]:
            texts = [("", texts[0][1])]
        return (side + text for side, text in texts if text)

    def _conclusion(self) -> str:
        judged = [item for item in self.results if item.verdict != "not judged"]
        if not judged:
            return "nothing could be judged: no check came to a number with a verdict"
        count = {v: sum(item.verdict == v for item in judged) for v in ("ok", "suspicious", "failed")}
        verb = "check is" if len(judged) == 1 else "checks are"
        text = f"{count['ok']} of {len(judged)} {verb} ok, {count['suspicious']} suspicious, {count['failed']} failed"
        if skipped := sum(bool(item.not_applicable) for item in self.results):
            text += f", {skipped} not applicable"
        if self.against is not None:
            worse = [
                f"{new.structure}: {new.check}"
                for old, new in zip(self.against, self.results, strict=True)
                if GRAVITY[new.verdict] > max(GRAVITY[old.verdict], GRAVITY["ok"])
            ]
            text += "; worse than before: " + ", ".join(worse) if worse else "; none is worse than before"
        return text

    def _html(self) -> Iterator[str]:
        titles = "".join(f"<th style='text-align:right'>{html.escape(title)}</th>" for title in self._titles())
        yield f"<table><thead><tr><th style='text-align:left'>quantity</th>{titles}</tr></thead><tbody>"
        span = len(self._titles()) + 1
        for index, result in enumerate(self.results):
            note = f" <small>({html.escape(result.note)})</small>" if result.note else ""
            head = f"<b>{html.escape(result.structure)}: {html.escape(result.check)}</b>{note}"
            head += "".join(f"<br>{html.escape(text)}" for text in self._remarks(index))
            yield f"<tr><td colspan='{span}' style='text-align:left'>{head}</td></tr>"
            for row in self.rows(index):
                yield self._html_row(row)
            if result.normal:
                cell = f"<small>{html.escape(result.normal)}</small>"
                yield f"<tr><td colspan='{span}' style='text-align:left'>{cell}</td></tr>"
        yield f"</tbody></table><p>{html.escape(self._conclusion())}</p>"

    def _html_row(self, row: Row) -> str:
        name, *cells = [html.escape(cell) for cell in self._cells(row)]
        why = f"<br><small>{html.escape(row.quantity.why)}</small>" if row.quantity.why else ""
        values = "".join(f"<td style='text-align:right;white-space:nowrap'>{cell}</td>" for cell in cells[:-1])
        style = {"suspicious": "color:#b35900;font-weight:bold", "failed": "color:#c00;font-weight:bold"}
        mark = style.get(row.quantity.verdict, "")
        last = f"<td style='text-align:right;{mark}'>{cells[-1]}</td>"
        return f"<tr><td style='text-align:left'>{name}{why}</td>{values}{last}</tr>"


def _remark(result: CheckResult) -> str:
    if result.failure:
        return f"failed: {result.failure}"
    return f"not applicable: {result.not_applicable}" if result.not_applicable else ""


def _number(value: float, *, sign: bool = False) -> str:
    if not np.isfinite(value):
        return "-"
    shown = 0.0 if abs(value) < _ROUNDING else value
    return f"{shown:{'+' if sign else ''}.4g}"


def _line(cells: Sequence[str]) -> str:
    name, *rest = cells
    widths = [11] * (len(rest) - 2) + [10, 12]
    aligned = "".join(f"{cell:>{width}s}" for cell, width in zip(rest, widths, strict=True))
    return f"    {name:36s}{aligned}".rstrip()
