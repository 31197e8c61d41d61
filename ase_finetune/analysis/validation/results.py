"""What checks find: numbers with a verdict, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

#: ``"not judged"`` is a number without a judgement.
Verdict = Literal["ok", "suspicious", "failed", "not judged"]

#: How grave a verdict is.
GRAVITY: dict[Verdict, int] = {"not judged": 0, "ok": 1, "suspicious": 2, "failed": 3}


@dataclass(frozen=True)
class Quantity:
    """One number that a check found.

    Attributes
    ----------
    name, unit
        ``"bulk modulus"``, ``"GPa"``.
    value
        NaN where it could not be had; ``why`` then says why.
    verdict
        What to think of it.
    why
        One sentence; empty where there is nothing to explain.
    """

    name: str
    value: float
    unit: str
    verdict: Verdict = "not judged"
    why: str = ""


@dataclass(frozen=True)
class Findings:
    """Quantities, what a reader has to know about how they came about, and what is normal, where that is a question."""

    quantities: list[Quantity]
    note: str = ""
    normal: str = ""


@dataclass(frozen=True)
class CheckResult:
    """What one check found for one structure and one calculator.

    Attributes
    ----------
    check, structure
        Their names.
    quantities
        In a fixed order, so that two calculators can be compared.
    not_applicable
        Why there are none: the check does not fit the structure or the calculator. Empty otherwise.
    failure
        What went wrong where the calculator or the check gave up. Empty otherwise.
    note
        What a reader has to know about how the numbers came about.
    normal
        What to compare suspicious numbers with. Empty where nothing is suspicious.
    seconds
        It took.
    """

    check: str
    structure: str
    quantities: list[Quantity] = field(default_factory=list)
    not_applicable: str = ""
    failure: str = ""
    note: str = ""
    normal: str = ""
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The worst of its quantities."""
        return "failed" if self.failure else worst([item.verdict for item in self.quantities])

    def quantity(self, name: str) -> Quantity | None:
        """The quantity of that name, if there is one."""
        return next((item for item in self.quantities if item.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; numbers that are not finite become ``None``."""
        return {
            "check": self.check,
            "structure": self.structure,
            "verdict": self.verdict,
            "quantities": [
                {
                    "name": item.name,
                    "value": float(item.value) if np.isfinite(item.value) else None,
                    "unit": item.unit,
                    "verdict": item.verdict,
                    "why": item.why,
                }
                for item in self.quantities
            ],
            "not_applicable": self.not_applicable,
            "failure": self.failure,
            "note": self.note,
            "normal": self.normal,
            "seconds": self.seconds,
        }


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The gravest of some verdicts; ``"not judged"`` of none."""
    return max(verdicts, key=GRAVITY.__getitem__, default="not judged")


def judged(name: str, value: float, unit: str, *, failed: str = "", suspicious: str = "") -> Quantity:
    """A quantity that is fine unless a reason is given why it is not."""
    if failed:
        return Quantity(name, float(value), unit, "failed", failed)
    if suspicious:
        return Quantity(name, float(value), unit, "suspicious", suspicious)
    return Quantity(name, float(value), unit, "ok")
