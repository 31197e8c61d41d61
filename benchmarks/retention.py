"""What fine-tuning gains and what it forgets: the untouched model, naive and reEWC at the same budget.

    python -m benchmarks.retention [--data FOLDER] [--set lips lgps] [--methods naive ewc reewc] [--epochs 2]

LiPS and a retention set of MPtrj are bundled. LGPS, and the larger retention set, need the research data folder.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.analysis import Evaluation, evaluate_calculator
from ase_finetune.data import FrameSet, read_frames
from benchmarks.paired import machine

EXAMPLES = Path(__file__).parents[1] / "examples" / "data"


def target_frames(name: str, data: Path | None) -> tuple[FrameSet, FrameSet]:
    """Training and validation frames of a material."""
    if name == "lips":
        train, valid = (
            read_frames(EXAMPLES / "lips_train.extxyz"),
            read_frames(EXAMPLES / "lips_valid.extxyz", name="valid"),
        )
        return train.select(range(0, len(train), 2)), valid  # as in the demo
    if data is None:
        raise SystemExit("LGPS is not bundled: give its folder by --data or ASE_FINETUNE_DATA")
    train, valid = read_frames(data / "lgps_train.extxyz"), read_frames(data / "lgps_valid.extxyz", name="valid")
    return train.select(range(0, len(train), 6)), valid.select(range(0, len(valid), 2))


def row(name: str, seconds: float, valid: Evaluation, retention: Evaluation) -> dict[str, Any]:
    return {
        "method": name,
        "seconds": round(seconds),
        "target_forces": valid.raw.forces_mae,
        "target_energy_aligned": valid.aligned_energy_mae,
        "target_slope": valid.raw.slope,
        "retention_forces": retention.raw.forces_mae,
        "retention_energy_raw": retention.raw.energy_mae,
    }


def show(item: dict[str, Any]) -> None:
    values = list(item.values())
    print(f"{values[0]:12s}{values[1]:6d} s" + "".join(f"{value:12.3f}" for value in values[2:]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"))
    parser.add_argument("--set", nargs="+", default=["lips"], choices=["lips", "lgps"])
    parser.add_argument("--methods", nargs="+", default=["naive", "reewc"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--options", type=json.loads, default={}, help="further options of finetune() as JSON")
    parser.add_argument("--json", type=Path, help="file to append the rows to, one JSON object a line")
    arguments = parser.parse_args()
    data = None if arguments.data is None else Path(arguments.data)
    retention = read_frames(EXAMPLES / "mptrj_retention.extxyz", name="retention")
    print(machine())
    for name in arguments.set:
        train, valid = target_frames(name, data)
        print(f"\n{name}: {len(train)} frames to train, {len(valid)} to validate; retention: {len(retention)}")
        print(f"{'':20s}{'F meV/Å':>12s}{'E aligned':>12s}{'slope':>12s}{'MPtrj F':>12s}{'MPtrj E raw':>12s}")
        rows = []
        untouched = FinetunedCalculator("7net-0")
        rows.append(
            row("untouched", 0, evaluate_calculator(untouched, valid), evaluate_calculator(untouched, retention))
        )
        show(rows[0])
        for method in arguments.methods:
            start = time.perf_counter()
            options = {"epochs": arguments.epochs, "batch_size": 2, "learning_rate": 5e-4} | arguments.options
            calculator = finetune("7net-0", train, valid, method=method, verbose=False, **options)
            seconds = time.perf_counter() - start
            rows.append(
                row(method, seconds, evaluate_calculator(calculator, valid), evaluate_calculator(calculator, retention))
            )
            show(rows[-1])
        if arguments.json is not None:
            with arguments.json.open("a", encoding="utf-8") as file:
                for item in rows:
                    file.write(json.dumps(item | {"set": name, "options": options, "machine": machine()}) + "\n")


if __name__ == "__main__":
    main()
