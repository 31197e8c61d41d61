"""First fits of a newcomer: is something kept, is it the right thing, and is old material left in order?

    python -m benchmarks.science.first_fits [SITUATION ...] --data FOLDER [--work FOLDER] [--results FILE]

Each situation is trained with the defaults, and the weights of all epochs are kept. What the run returned is judged on
frames or pairs that it has never seen and on labelled MPtrj frames, beside every few epochs that forget no more than
the bound, and beside what the rule before this one would have kept (validation loss plus rise of the replay loss).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.data import FrameSet, read_frames
from ase_finetune.finetuning.forgetting import relative_rise
from ase_finetune.finetuning.training import Trainer
from ase_finetune.potentials import Potential
from ase_finetune.trajectories.evaluation import evaluate_relaxations, summarize
from benchmarks.paired import machine, versions
from benchmarks.science.judging import errors_on
from benchmarks.science.situations import SITUATIONS, Situation
from benchmarks.science.storing import commit, rounded

#: Of how many epochs the unseen errors are looked at, about, besides that which was kept.
LOOKS = 7

#: Frames of MPtrj that forgetting is measured on.
OLD_FRAMES = 100


@contextmanager
def weights_kept(folder: Path) -> Iterator[None]:
    """Write the weights of every epoch of the trainings inside into a folder."""
    original = Trainer._end_epoch  # there is no need for a hook outside this study

    def end_epoch(trainer: Trainer) -> None:
        weights = {name: p.detach().clone() for name, p in trainer.evaluated.native_parameters()}
        torch.save(weights, folder / f"epoch{trainer.progress.epoch}.pt")
        original(trainer)

    Trainer._end_epoch = end_epoch  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer._end_epoch = original  # type: ignore[method-assign]


def train(situation: Situation, data: Path, folder: Path) -> FinetunedCalculator:
    """Fine-tune with the defaults, or go on with it, or load the result."""
    if (folder / "done").exists():
        calculator = FinetunedCalculator(folder / "run" / "model")
        calculator.history = json.loads((folder / "done").read_text(encoding="utf-8"))
        return calculator
    folder.mkdir(parents=True, exist_ok=True)
    with weights_kept(folder):
        calculator = finetune(
            "7net-0", **situation.sources(data), output=folder / "run", resume=True, report=False, **situation.options
        )
    (folder / "done").write_text(json.dumps(calculator.history), encoding="utf-8")
    return calculator


def unseen_loss(potential: Potential, unseen: FrameSet | list[Any]) -> float:
    """Force MAE in meV/Å of frames; of pairs the loss of where their relaxations end."""
    if isinstance(unseen, FrameSet):
        return float(errors_on(potential, unseen)["forces_mae"])
    calculator = FinetunedCalculator(potential)
    ends = evaluate_relaxations(calculator, *map(list, zip(*unseen, strict=True)), cell=True, progress=False)
    return summarize(ends).loss


def forgetting_of(row: dict[str, Any]) -> float:
    """The estimated rise of errors on old structures of an epoch."""
    moved = {name: row[f"replay_{name}"] for name in ("energy_mae", "forces_mae")}
    return relative_rise(moved, dict.fromkeys(moved, 0.0))


def earlier_rule(history: list[dict[str, Any]], before: dict[str, Any], fights: bool, on_pairs: bool) -> int:
    """The epoch that validation loss plus rise of the replay loss would have kept."""

    def score(row: dict[str, Any]) -> float:
        if not fights:
            return float(row["valid_loss"])
        if on_pairs:  # in quadrature with the typical error, as it was
            return row["valid_loss"] + before["loss"] * (math.hypot(40.0, row["replay_forces_mae"]) / 40.0 - 1)
        return float(row["valid_loss"] + row["replay_loss"])

    scores = {0: before["loss"]} | {row["epoch"]: score(row) for row in history}
    return min(scores, key=lambda epoch: scores[epoch])


def judge(situation: Situation, calculator: FinetunedCalculator, data: Path, folder: Path) -> dict[str, Any]:
    """The figures of a situation."""
    history, (*_, stage) = calculator.history, calculator.metadata["stages"]
    unseen, old = situation.unseen(data), read_frames(data / "mptrj_retention.extxyz", name="MPtrj")
    old = old.select(k * len(old) // OLD_FRAMES for k in range(OLD_FRAMES))
    untouched = FinetunedCalculator("7net-0").potential
    start, old_start = unseen_loss(untouched, unseen), errors_on(untouched, old)
    bound, method = stage["kept"]["bound"], calculator.metadata["config"]["method"]
    fights = method not in ("naive", "bptt")
    admissible = [row["epoch"] for row in history if bound is None or forgetting_of(row) <= bound]
    every = max(1, len(history) // LOOKS)
    earlier = earlier_rule(history, stage["before"]["valid"], fights, method.startswith("bptt"))
    looked = {epoch for epoch in admissible if epoch % every == 0} | {earlier} - {0}
    changes = {epoch: unseen_loss(_with(folder, epoch), unseen) / start - 1 for epoch in sorted(looked)}
    result = calculator.potential
    forgotten = {name: errors_on(result, old)[name] / old_start[name] - 1 for name in ("energy_mae", "forces_mae")}
    best = min((changes[epoch] for epoch in admissible if epoch in changes), default=0.0)
    now = unseen_loss(result, unseen) / start - 1
    return {
        "kept": stage["kept"],
        "unseen": now,
        "unseen_before": start,
        "old": forgotten,
        "best_admissible": best,
        "earlier_rule": {"epoch": earlier, "unseen": changes.get(earlier, 0.0)},
        "history": history,
    }


def _with(folder: Path, epoch: int) -> Potential:
    """SevenNet-0 with the weights of an epoch."""
    potential = FinetunedCalculator("7net-0").potential
    weights = torch.load(folder / f"epoch{epoch}.pt", weights_only=True)
    with torch.no_grad():
        for name, parameter in potential.native_parameters():
            parameter.copy_(weights[name])
    return potential


def line(name: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    kept, earlier, old = found["kept"], found["earlier_rule"], found["old"]
    was = f"epoch {earlier['epoch']}, {100 * earlier['unseen']:+.1f} %" if earlier["epoch"] else "unchanged"
    now = "unchanged" if kept["unchanged"] else f"epoch {kept['epoch']} of {kept['epochs']}"
    drawn = f", drawn back to {kept['fraction']:.0%}" if kept["fraction"] < 1 else ""
    return (
        f"| {name} | {was} | {now}{drawn} | {100 * found['unseen']:+.1f} % | {100 * found['best_admissible']:+.1f} % | "
        f"{100 * old['forces_mae']:+.1f}, {100 * old['energy_mae']:+.1f} % |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.science.first_fits", description=__doc__)
    parser.add_argument("situations", nargs="*", help=f"all when none is named: {', '.join(SITUATIONS)}")
    parser.add_argument("--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"), required=False)
    parser.add_argument("--work", type=Path, default=Path("runs/first_fits"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "first_fits.json")
    arguments = parser.parse_args()
    for name in arguments.situations or SITUATIONS:
        known = json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.results.exists() else {}
        if name not in known:
            situation, folder = SITUATIONS[name], arguments.work / name
            calculator = train(situation, Path(arguments.data), folder)
            found = judge(situation, calculator, Path(arguments.data), folder)
            known = json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.results.exists() else {}
            known[name] = rounded(found | {"machine": machine(), "versions": versions(), "commit": commit()})
            arguments.results.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(line(name, known[name]), flush=True)


if __name__ == "__main__":
    main()
