"""What the soak checks share: their command line, the research data, and the JSON file they leave."""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.paired import machine, versions


@dataclass(frozen=True)
class Check:
    """One figure against its bound.

    Attributes
    ----------
    name, value, unit
        What was measured.
    bound
        Largest value that is good enough; ``None`` where the figure is only told.
    """

    name: str
    value: float
    unit: str = ""
    bound: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the value is within its bound; a NaN never is."""
        return self.bound is None or bool(abs(self.value) <= self.bound)

    def line(self) -> str:
        """For the terminal."""
        bound = "" if self.bound is None else f"(at most {self.bound:g}: {'passed' if self.passed else 'FAILED'})"
        return f"  {self.name:58s}{self.value:12.4g} {self.unit:13s}{bound}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values by name."""
        return vars(self) | {"value": float(self.value), "passed": self.passed}


def options(description: str | None, default: str) -> argparse.ArgumentParser:
    """The options all soak checks have; each adds its own."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"), help="research data")
    parser.add_argument("--quick", action="store_true", help="the smallest form: whether it runs")
    parser.add_argument("--output", type=Path, default=Path("runs/reliability") / default, help="JSON file to write")
    return parser


def quiet() -> None:
    """Deprecations inside other packages would bury the figures."""
    warnings.simplefilter("ignore")


def data_file(folder: Path | None, name: str) -> Path:
    """A file of the research data."""
    if folder is None:
        raise SystemExit(f"{name} is not bundled: give its folder by --data or ASE_FINETUNE_DATA")
    path = Path(folder) / name
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; --data or ASE_FINETUNE_DATA names the folder with {name}")
    return path


def record(path: Path, part: str, checks: list[Check], more: Mapping[str, Any], quick: bool) -> bool:
    """Tell the figures of one part and put them into the JSON file, beside those of other parts; whether all passed."""
    print(f"\n{part}")
    for check in checks:
        print(check.line(), flush=True)
    content: dict[str, Any] = {}
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
    content[part] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "quick": quick,
        "checks": [check.to_dict() for check in checks],
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return all(check.passed for check in checks)
