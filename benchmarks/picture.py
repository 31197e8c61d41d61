"""One picture of all ratios against their targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt  # after the choice of a backend without a display

from benchmarks.suite import NAMES

_MET, _MISSED, _FREE = "tab:green", "tab:red", "tab:gray"


def draw(folder: Path) -> Path | None:
    """Draw ``ratios.png`` from all results in a folder, also those of earlier runs; ``None`` if there is no ratio."""
    paths = [folder / f"{name}.json" for name in NAMES]
    files = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    rows = [(file, row) for file in files for row in file["rows"]]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(10, 1.8 + 0.4 * len(rows)), layout="constrained")
    for height, (_, row) in enumerate(rows):
        _one(axes, height, row)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    _bounds(axes, [row for _, row in rows])
    axes.set_yticks(range(len(rows)), [_label(file, row) for file, row in rows], fontsize=7.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("ours / peer (left of 1: ours needs less)")
    axes.grid(visible=True, axis="x", which="both", linewidth=0.3)
    axes.set_title(_title(files), fontsize=9)
    _legend(figure, axes)
    target = folder / "ratios.png"
    figure.savefig(target, dpi=130)
    plt.close(figure)
    return target


def _one(axes: Any, height: int, row: dict[str, Any]) -> None:
    colour = {True: _MET, False: _MISSED, None: _FREE}[row["met"]]
    axes.plot([1, row["ratio"]], [height, height], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
    axes.plot([row["ratio"]], [height], "o", color=colour, markersize=7)
    if row["target"] is not None:
        axes.plot([row["target"]], [height], "|", color="black", markersize=14, markeredgewidth=2)
    axes.annotate(
        f"{row['ratio']:.2f}", (1.01, height), xycoords=("axes fraction", "data"), fontsize=8, va="center", color=colour
    )


def _bounds(axes: Any, rows: list[dict[str, Any]]) -> None:
    values = [1.0, *(value for row in rows for value in (row["ratio"], row["target"]) if value is not None)]
    axes.set_xlim(0.8 * min(values), 1.25 * max(values))
    ticks = [m * 10**e for e in range(-3, 4) for m in (1, 2, 5) if 0.8 * min(values) <= m * 10**e <= 1.25 * max(values)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _label(file: dict[str, Any], row: dict[str, Any]) -> str:
    where = "" if file["device"] == "cpu" else f" ({file['device']})"
    return f"{file['benchmark']}{where}: {row['name']}\nagainst {row['against']}"


def _title(files: list[dict[str, Any]]) -> str:
    missing = sum(len(file["missing"]) for file in files)
    lines = sorted({file["machine"] for file in files})
    lines.append(f"{max(file['date'] for file in files)}; {missing} rows could not be measured")
    if any(file["quick"] for file in files):
        lines.append("quick form: these figures say that it runs, not how fast")
    return "\n".join(lines)


def _legend(figure: Any, axes: Any) -> None:
    for colour, text in ((_MET, "target met"), (_MISSED, "target not met"), (_FREE, "no target")):
        axes.plot([], [], "o", color=colour, label=text)
    axes.plot([], [], "|", color="black", markersize=14, markeredgewidth=2, label="target")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
