"""How far rollouts get: python -m benchmarks.science.rollouts --data FOLDER.

Rollouts of training start at the DFT structures and should show where a relaxation ends. Here the untouched model
makes k steps with each optimizer, and what is left of the way to the minimum it relaxes to is told. The result is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ase_finetune import FinetunedCalculator
from ase_finetune.optimize import relax
from ase_finetune.trajectories.losses import cell_strain, rmsd
from ase_finetune.trajectories.structures import Structures
from benchmarks.paired import machine, versions
from benchmarks.science.pairs import read_sets

MODEL = "7net-0"
PAIRS = {"set": "crystals", "most_atoms": 6, "held_out": 10}
STEPS = (5, 10, 15, 30)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "FIRE": {"optimizer": "fire"},
    "FIRE, dt 0.2": {"optimizer": "fire", "dt": 0.2},
    "LBFGS": {"optimizer": "lbfgs"},
}

#: Å; below, a structure does not leave its sites, and nothing is left of nothing.
STAYS = 1e-3


def ways_left(data: Path) -> dict[str, Any]:
    """Medians, by optimizer and number of steps: the shares of RMSD and strain that are left."""
    _, pairs = read_sets(data, PAIRS)
    starts = [pair.relaxed for pair in pairs]
    calculator = FinetunedCalculator(MODEL)
    ends = [end.atoms for end in relax(starts, calculator, cell=True, fmax=0.01, steps=150, progress=False)]
    way = _apart(ends, starts)
    moves = way[0] > STAYS
    found: dict[str, Any] = {"median rmsd": float(np.median(way[0])), "median strain": float(np.median(way[1]))}
    for name, options in OPTIMIZERS.items():
        rows = []
        for steps in STEPS:
            on_the_way = relax(starts, calculator, cell=True, fmax=1e-6, steps=steps, progress=False, **options)
            left = _apart([end.atoms for end in on_the_way], ends)
            shares = np.median(left[0][moves] / way[0][moves]), np.median(left[1] / way[1])
            rows.append([steps, *(round(float(share), 2) for share in shares)])
        found[name] = rows
    return found


def table(found: dict[str, Any]) -> str:
    """Of the shares, in per cent."""
    lines = [f"| RMSD, strain left after | {' | '.join(f'{steps} steps' for steps in STEPS)} |"]
    lines.append("|---" * (1 + len(STEPS)) + "|")
    for name in OPTIMIZERS:
        cells = [f"{100 * distance:.0f} %, {100 * strain:.0f} %" for _, distance, strain in found[name]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure unless it was, and tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"), help="research data")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of results")
    arguments = parser.parse_args(argv)
    target = arguments.results / "rollouts.json"
    if not target.exists():
        if arguments.data is None:
            parser.error("needs the research data: --data FOLDER or ASE_FINETUNE_DATA")
        found = ways_left(Path(arguments.data)) | {"machine": machine(), "versions": versions()}
        arguments.results.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(found | {"date": time.strftime("%Y-%m-%d")}, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(target.read_text(encoding="utf-8"))))


def _apart(ends: Sequence[Any], targets: Sequence[Any]) -> tuple[Any, Any]:
    """(b,) RMSD and strain between structures."""
    one, other = Structures.from_atoms(ends), Structures.from_atoms(targets)
    with torch.no_grad():
        return rmsd(one, other).numpy(), cell_strain(one, other).numpy()


if __name__ == "__main__":
    main()
