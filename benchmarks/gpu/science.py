"""What fine-tuning on LGPS gains and forgets: naive and reEWC on few frames, and more of it while time is left."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ase_finetune import FinetunedCalculator
from benchmarks.gpu.stage import Bench, SkippedError, Task
from benchmarks.science.fitting import fit_case
from benchmarks.science.judging import Judge
from benchmarks.science.plans import Case, Plan

#: Method, frames, epochs and seed, in the order of what matters.
RUNS = (
    ("naive", 100, 4, 0),
    ("reewc", 100, 4, 0),
    ("reewc", 100, 4, 1),
    ("naive", 100, 4, 1),
    ("ewc", 100, 4, 0),
    ("replay", 100, 4, 0),
    ("reewc", 300, 10, 0),
    ("naive", 300, 10, 0),
)
QUICK = (("naive", 2, 1, 0), ("reewc", 2, 1, 0))

#: What the methods take more than naive training, about, and seconds that come on top: to see what still fits.
COST = {"naive": 1.0, "replay": 2.5, "ewc": 1.2, "reewc": 2.5}
FIXED = 20.0


def tasks(bench: Bench) -> Iterator[Task]:
    """Each run is judged on frames of the target and of MPtrj."""
    study = Study(bench)
    yield "untouched", study.untouched
    for method, frames, epochs, seed in QUICK if bench.quick else RUNS:
        name = f"{method}, {frames} frames, {epochs} epochs, seed {seed}"
        yield name, functools.partial(study.fit, method, frames, epochs, seed)


class Study:
    """Runs of SevenNet-0 on LGPS.

    Parameters
    ----------
    bench
        Where, and the folder of the data.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        #: Seconds of naive training for a frame and an epoch, once they are known.
        self._per_frame: float | None = None

    @property
    def _data(self) -> Path:
        if self._bench.data is None:
            raise SkippedError("needs the research data: --data FOLDER, or a bundle made with it")
        return self._bench.data

    @functools.cached_property
    def _judge(self) -> Judge:
        few = self._bench.size({"lgps": 2, "mptrj": 2}, {"lgps": 20, "mptrj": 40}, {"lgps": None, "mptrj": None})
        return Judge(self._data, few)

    def untouched(self) -> dict[str, Any]:
        """Errors before any training."""
        return _values(self._judge(FinetunedCalculator("7net-0", device=str(self._bench.device)).potential))

    def fit(self, method: str, frames: int, epochs: int, seed: int) -> dict[str, Any]:
        """Fine-tune and judge, if the time is likely to be enough."""
        data = self._data
        if self._per_frame is not None:
            expected = FIXED + COST[method] * self._per_frame * frames * epochs
            if expected > self._bench.left:
                raise SkippedError(f"would take about {expected:.0f} s, {self._bench.left:.0f} s are left")
        options = {"method": method, "epochs": epochs, "valid": None, "device": str(self._bench.device)}
        options |= {"verbose": False} | self._bench.size(
            {"replay_size": 4, "monitor_size": 2, "fisher_size": 4}, {}, {}
        )
        case = Case(f"{method}-{frames}-{epochs}", options)
        train = {"set": "lgps_train", "frames": frames}
        plan = Plan("gpu", "gpu", "", "frames", "7net-0", train, {}, {}, [case], {})
        with tempfile.TemporaryDirectory() as folder:
            found = fit_case(plan, case, seed, data, Path(folder) / "run", self._judge)
        if method == "naive":
            self._per_frame = found["seconds"] / (frames * epochs)
        return _values(found["sets"], train_seconds=found["seconds"], history=found["history"])


def _values(sets: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Force errors on the target as the value, and the others in short."""
    target, old = sets["lgps"], sets["mptrj"]
    short = f"E {target['energy_mae_target']:.2f} meV/atom; MPtrj F {old['forces_mae']:.1f}, E {old['energy_mae']:.2f}"
    if "train_seconds" in more:
        short += f"; {more['train_seconds']:.0f} s"
    return {"value": target["forces_mae"], "unit": "meV/A", "sets": sets, "short": short, **more}
