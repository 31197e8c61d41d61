"""Results of cases as JSON files; what is there is not run again."""

from __future__ import annotations

import fcntl
import json
import math
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.paired import machine, versions
from benchmarks.science.plans import Case, Plan


class Store:
    """The results of one study in one form.

    Parameters
    ----------
    folder
        Of all studies.
    plan
        Of this one.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder / f"{plan.study}-{plan.form}"
        self._plan = plan

    def has(self, case: Case, seed: int) -> bool:
        """Whether the case was run with this seed."""
        return self._path(case, seed).exists()

    def write(self, case: Case, seed: int, result: dict[str, Any]) -> None:
        """Keep a result with what is needed to get it again."""
        content = {
            "study": self._plan.study,
            "form": self._plan.form,
            "case": case.name,
            "seed": seed,
            "options": self._plan.options | case.options,
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            **result,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self._path(case, seed)
        beside = target.with_suffix(".part")
        beside.write_text(json.dumps(rounded(content), indent=1) + "\n", encoding="utf-8")
        beside.replace(target)

    def read(self) -> dict[Case, list[dict[str, Any]]]:
        """The results there are, by case in the plan's order."""
        found: dict[Case, list[dict[str, Any]]] = {}
        for case in self._plan.cases:
            paths = [self._path(case, seed) for seed in case.seeds]
            results = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
            if results:
                found[case] = results
        return found

    def _path(self, case: Case, seed: int) -> Path:
        return self.folder / f"{case.result(seed)}.json"


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether no other process works on this; the claim ends with the process, however it ends."""
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def commit() -> str:
    """Of the code that ran."""
    here = Path(__file__).parent
    made = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
    )
    return made.stdout.strip() or "unknown"


def rounded(value: Any) -> Any:
    """Floats to six digits: the rest is noise, and makes files long."""
    if isinstance(value, float):
        return None if not math.isfinite(value) else float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value
