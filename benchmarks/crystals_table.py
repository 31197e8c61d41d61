"""The table of bptt_crystals.py: medians over held-out pairs, and how sure their change is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def table(files: Sequence[Path]) -> str:
    """One line per way; changes are against "untouched" on the pairs that both relax into the right basin."""
    results = {result["name"]: result for result in (json.loads(file.read_text(encoding="utf-8")) for file in files)}
    if "untouched" not in results:
        return "no table without the result of 'untouched'"
    base = results["untouched"]
    order = sorted(results, key=lambda name: (name != "untouched", name))
    lines = [
        "medians in the right basin; change on pairs that both relax into it [90 % bootstrap]; means of all pairs",
        "| way | strain | change | RMSD Å | change | right basin | strain, RMSD of all | steps | MPtrj E, F | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(results[name], base) for name in order),
    ]
    return "\n".join(lines)


def _line(result: dict[str, Any], base: dict[str, Any]) -> str:
    own = _column(result, "right_basin").astype(bool)
    both = own & _column(base, "right_basin").astype(bool)
    cells = [result["name"]]
    for measure in ("strain", "rmsd"):
        values, old = _column(result, measure), _column(base, measure)
        cells += [f"{np.median(values[own]):.4f}", _change(old[both], values[both])]
    everything = [f"{np.nanmean(_column(result, measure)):.3f}" for measure in ("strain", "rmsd")]
    retention, before = result["retention"], base["retention"]
    cells += [
        f"{own.sum()}/{len(own)}",
        ", ".join(everything),
        f"{np.median(_column(result, 'steps')):.0f}",
        f"{retention['energy_mae']:.2f}, {retention['forces_mae']:.2f} "
        f"({100 * (retention['forces_mae'] / before['forces_mae'] - 1):+.1f} %)",
        f"{result['seconds']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _column(result: dict[str, Any], name: str) -> np.ndarray:
    return np.array([np.nan if pair[name] is None else pair[name] for pair in result["pairs"]], dtype=float)


def _change(old: np.ndarray, new: np.ndarray) -> str:
    """Change of the median in per cent, with the interval of a bootstrap over pairs."""
    if not len(old) or np.array_equal(old, new):
        return "-"
    picks = np.random.default_rng(0).integers(0, len(old), size=(2000, len(old)))
    changes = 100 * (np.median(new[picks], axis=1) / np.median(old[picks], axis=1) - 1)
    low, high = np.percentile(changes, [5, 95])
    return f"{100 * (np.median(new) / np.median(old) - 1):+.0f} % [{low:+.0f}, {high:+.0f}]"
