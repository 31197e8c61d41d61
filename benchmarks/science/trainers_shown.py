"""Table and picture of trainers.py."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt  # after the choice of a backend without a display

from ase_finetune.files import make_folder
from benchmarks.science.palette import COLOURS

Results = dict[str, dict[str, Any]]

#: Set, measure, title and format.
PANELS = [
    ("target", "forces_mae", "LGPS force MAE, meV/Å", ".2f"),
    ("target", "energy_mae", "LGPS energy MAE, meV/atom", ".3f"),
    ("old", "forces_mae", "MPtrj force MAE, meV/Å", ".2f"),
    ("old", "energy_mae", "MPtrj energy MAE, meV/atom", ".3f"),
]

LABELS = {
    "ours": "ase_finetune",
    "sevenn": "sevenn's own trainer",
    "sevenn-as-it-comes": "sevenn's, published files not reordered",
    "ours-one-by-one": "ase_finetune, one structure at a time",
}

#: Is drawn as far as it fits beside the others.
AWAY = "sevenn-as-it-comes"

#: Curves that lie on each other must all be seen: a line, open squares on it, dots in them.
LOOKS: dict[str, dict[str, Any]] = {
    "ours": {"color": COLOURS[0], "linewidth": 1.6, "marker": "o", "markersize": 4},
    "sevenn": {
        "color": COLOURS[1],
        "linewidth": 1.2,
        "linestyle": "--",
        "marker": "s",
        "markersize": 9,
        "fillstyle": "none",
    },
    "sevenn-as-it-comes": {"color": COLOURS[3], "linewidth": 1.2, "linestyle": "-.", "marker": "v", "markersize": 5},
    "ours-one-by-one": {"color": COLOURS[2], "linewidth": 1.0, "linestyle": ":", "marker": "x", "markersize": 6},
}


def curve(result: dict[str, Any], of: str, measure: str) -> tuple[list[int], list[float]]:
    """Pairs of steps, and a measure on a set after them."""
    return [point["pairs"] for point in result["curve"]], [point["sets"][of][measure] for point in result["curve"]]


def apart(results: Results, name: str, of: str, measure: str) -> float:
    """Largest difference between the curve of a side and ours, in the units of the measure."""
    mine, its = (curve(results[side], of, measure)[1] for side in ("ours", name))
    return max(abs(a - b) for a, b in zip(mine, its, strict=True))


def time_of_pair(result: dict[str, Any]) -> float:
    """Seconds of a target and a replay step, median over the parts; of the processor, where its cores are shared."""
    points = result["curve"]
    on_gpu = "no GPU" not in result["machine"]
    taken = [
        later["seconds" if on_gpu else "cpu_seconds"] / (later["pairs"] - earlier["pairs"])
        for earlier, later in itertools.pairwise(points)
    ]
    return float(statistics.median(taken))


def table(results: Results) -> str:
    """Markdown: the errors of all sides after each part, how far they are apart at most, and the time they take."""
    if not results:
        return "no results yet"
    lines = ["| pairs of steps | side | " + " | ".join(title for _, _, title, _ in PANELS) + " | weights apart |"]
    lines.append("|" + "---|" * (len(PANELS) + 3))
    points = len(next(iter(results.values()))["curve"])
    for number in range(points):
        for name, result in results.items():
            point = result["curve"][number]
            cells = [f"{point['sets'][of][measure]:{form}}" for of, measure, _, form in PANELS]
            known = number > 0 and "apart" in result
            cells.append(f"{100 * result['apart'][number - 1]:.2g} %" if known else "")
            lines.append(f"| {point['pairs']} | {LABELS[name]} | " + " | ".join(cells) + " |")
    for name in results:
        if name != "ours" and "ours" in results:
            cells = [f"{apart(results, name, of, measure):.2g}" for of, measure, _, _ in PANELS]
            lines.append(f"| all | {LABELS[name]}, largest difference from ours | " + " | ".join(cells) + " | |")
    lines.append("")
    lines += [
        f"{LABELS[name]}: {time_of_pair(result):.3g} s per pair of steps; {len(result['trained'])} tensors trained"
        for name, result in results.items()
    ]
    return "\n".join(lines)


def draw(results: Results, target: Path) -> Path:
    """The curves side by side."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(14, 3.9), layout="constrained")
    for axis, (of, measure, title, _) in zip(axes, PANELS, strict=True):
        for name, result in results.items():
            axis.plot(*curve(result, of, measure), label=LABELS[name], **LOOKS[name])
        # One that runs away must not flatten the others.
        near = [y for name, result in results.items() if name != AWAY for y in curve(result, of, measure)[1]]
        if AWAY in results and near:
            margin = 0.5 * (max(near) - min(near))
            axis.set_ylim(min(near) - margin, max(near) + 2 * margin)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("pairs of steps (target, replay)")
        axis.grid(visible=True, linewidth=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    make_folder(target.parent)
    figure.savefig(target, dpi=130)
    plt.close(figure)
    return target
