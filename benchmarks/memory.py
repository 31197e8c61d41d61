"""Peak memory of a reEWC run against a naive one, each in a fresh process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.data import embedded_replay, read_frames
from benchmarks.inputs import MODEL, target
from benchmarks.paired import Comparison
from benchmarks.suite import Missing, Row, Setting, Target
from benchmarks.workers import MIB, Peak, WorkerError, answer, fresh

TARGETS = {"a run": Target(cpu=1.1, gpu=1.1)}
COPIES = 2  # of the parameters: Fisher information and anchor


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """A run of one method, above what the loaded model and its first evaluation need."""
    torch.set_num_threads(task["threads"])
    train = read_frames(task["target"]).select(range(task["frames"]))
    calculator = FinetunedCalculator(MODEL, device=task["device"])
    calculator.calculate(train[0].atoms, ["energy", "forces", "stress"])
    parameters = sum(p.numel() * p.element_size() for p in calculator.potential.parameters())
    peak = Peak(calculator.potential.device)
    finetune(
        calculator.potential,
        train,
        None,
        method=task["method"],
        replay=embedded_replay(task["replay"]) if task["method"] == "reewc" else None,
        monitor_size=2,
        epochs=1,
        batch_size=task["batch"],
        device=task["device"],
        verbose=False,
    )
    return {"peak": peak.read() / MIB, "parameters": parameters / MIB}


def run(setting: Setting) -> Iterator[Row | Missing]:
    frames, batch, replay = setting.size((1, 1, 4), (8, 4, 24))
    common = {
        "target": str(target(setting)),
        "frames": frames,
        "batch": batch,
        "replay": replay,
        "device": str(setting.device),
    }
    common["threads"] = torch.get_num_threads()
    name, against = f"{frames} frames of {target(setting).name} in batches of {batch}", "naive, the same frames"
    try:
        reewc, naive = (fresh("memory", common | {"method": method}) for method in ("reewc", "naive"))
    except WorkerError as error:
        yield Missing(name, against, str(error))
        return
    limit = TARGETS["a run"].on(setting)
    assert limit is not None
    allowed = limit + COPIES * reewc["parameters"] / naive["peak"]
    notes = (
        f"target: 1.1 and {COPIES} copies of the parameters of {reewc['parameters']:.1f} MiB; above the loaded model"
    )
    yield Row(f"reEWC, {name}", against, Comparison([reewc["peak"]], [naive["peak"]]), allowed, "MiB", notes)


if __name__ == "__main__":
    answer(measure)
