"""Fine-tune SevenNet-0 on a sulfide electrolyte (LiPS) with reEWC, and see what was gained and what was kept.

python examples/finetune_reewc.py [--short] [--output runs/lips]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.analysis import evaluate_calculator
from ase_finetune.analysis.evaluation import before_after_table
from ase_finetune.data import read_frames

DATA = Path(__file__).parent / "data"


def main(output: str | Path = "runs/lips", short: bool = False) -> FinetunedCalculator:
    """Fine-tune, print the table, return the calculator."""
    frames = read_frames(DATA / "lips_train.extxyz", name="train")
    train = frames.select(range(0, len(frames), 2))  # half of them do for two short epochs on a laptop
    valid = read_frames(DATA / "lips_valid.extxyz", name="LiPS validation")
    retention = read_frames(DATA / "mptrj_retention.extxyz", name="MPtrj retention")
    options = {"epochs": 2, "batch_size": 2, "learning_rate": 5e-4, "replay_size": 120, "fisher_size": 80}
    if short:  # a few steps, to see that everything runs
        train, valid, retention = train.select([0, 20]), valid.select([0]), retention.select(range(4))
        options |= {"epochs": 1, "replay_size": 4, "monitor_size": 2, "fisher_size": 2}

    before = FinetunedCalculator("7net-0")
    after = finetune("7net-0", train, valid, method="reewc", output=output, **options)

    sets = [valid, retention]
    print(
        before_after_table(
            [evaluate_calculator(before, s) for s in sets], [evaluate_calculator(after, s) for s in sets]
        )
    )
    return after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few steps only")
    parser.add_argument("--output", default="runs/lips", help="folder for the result")
    arguments = parser.parse_args()
    main(arguments.output, arguments.short)
