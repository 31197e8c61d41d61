"""Compare what a run gives with what its file holds.

Where torch's version, the instruction set that it uses and the kind of processor are those of the file, every number
has to have the same bits. Elsewhere numbers may differ by 1e-9 of their size (and where they are rounding noise around
zero, by 1e-11), and hashes of weights, labels and models are not looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "outputs"

RELATIVE, ABSOLUTE = 1e-9, 1e-11

#: What the files of runs that two processes made together end in.
TOGETHER = "-two-processes"

_HASH = re.compile(r"[0-9a-f]{16,}")


def read(name: str) -> dict[str, Any]:
    """What the file of a case holds."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def differences(name: str, now: dict[str, Any]) -> str:
    """The first difference of each part from the file of a case, a line each; empty where there is none."""
    before = read(name)
    exact = all(before.pop(key) == now[key] for key in ("torch", "cpu"))
    now = {key: value for key, value in now.items() if key not in ("torch", "cpu")}
    lines = []
    for part in dict.fromkeys([*before, *now]):
        first = next(_differences(part, before.get(part), now.get(part), exact), None)
        if first is not None:
            lines.append(f"{name}: {first}")
    return "\n".join(lines)


def _differences(where: str, before: Any, now: Any, exact: bool) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            if key in before and key in now:
                yield from _differences(f"{where}, {key}", before[key], now[key], exact)
            else:
                yield f"{where}, {key}: only {'in the file' if key in before else 'in the run'}"
    elif isinstance(before, list) and isinstance(now, list):
        for number, (one, other) in enumerate(zip(before, now, strict=False)):
            yield from _differences(f"{where}, {_item(where, number, one)}", one, other, exact)
        if len(before) != len(now):
            yield f"{where}: {len(before)} in the file, {len(now)} in the run"
    elif not _same(before, now, exact):
        yield f"{where}: {before!r} in the file, {now!r} in the run"


def _item(where: str, number: int, item: Any) -> str:
    if where == "history":
        member = f"member {item['member']}, " if "member" in item else ""
        return f"{member}{item['stage']}, epoch {item['epoch']}"
    return f"step {number + 1}" if where == "steps" else str(number)


def _same(before: Any, now: Any, exact: bool) -> bool:
    if repr(before) == repr(now):  # the same bits, NaN and -0.0 too
        return True
    if exact or isinstance(before, bool):
        return False
    if isinstance(before, float) and isinstance(now, float):
        return math.isclose(before, now, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return isinstance(before, str) and isinstance(now, str) and bool(_HASH.fullmatch(before) and _HASH.fullmatch(now))
