"""A second round on other frames of the liquid, and an ensemble on LGPS, as a newcomer would make them.

    python -m benchmarks.science.second_rounds [rounds] [ensemble] --data FOLDER [--first MODEL] [--epochs N]

``rounds``: twelve frames, then twelve others; errors on frames that neither round knows, in the places of both, and
how far predictions on MPtrj are from labels, beside training anew on all 24. ``ensemble``: four members on 20 frames;
what they hold out, and their spread beside their error on unseen frames.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import read, write

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.data import FrameSet, read_frames
from ase_finetune.potentials import Potential
from benchmarks.paired import machine, versions
from benchmarks.science.judging import errors_on
from benchmarks.science.situations import SITUATIONS
from benchmarks.science.storing import commit, rounded

#: Frames of MPtrj that forgetting is measured on.
OLD_FRAMES = 100


def liquid(data: Path, work: Path) -> dict[str, Path]:
    """Files of the frames of two rounds: the first half of the trajectory, and the second."""
    frames = [atoms for atoms in read(data / "licl_cocl2_periodic.xyz", index=":") if len(atoms) > 1]
    parts = {"first": frames[0:24:2], "second": frames[24:44:2][:10] + frames[25:29:2]}
    parts |= {"first_unseen": frames[1:24:4], "second_unseen": frames[29:44:2]}
    work.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        write(work / f"{name}.extxyz", part, format="extxyz")
    return {name: work / f"{name}.extxyz" for name in parts}


def rounds(data: Path, work: Path, options: dict[str, Any], first: Path | None) -> dict[str, Any]:
    """Figures of both rounds, and of training anew."""
    files = liquid(data, work)
    old = read_frames(data / "mptrj_retention.extxyz", name="MPtrj")
    sets = {name: read_frames(files[name]) for name in ("first_unseen", "second_unseen")}
    sets["MPtrj"] = old.select(k * len(old) // OLD_FRAMES for k in range(OLD_FRAMES))
    seconds: dict[str, float] = {}

    def fit(name: str, model: Any, train: Any, **more: Any) -> FinetunedCalculator:
        start = time.process_time()
        calculator = finetune(model, train, output=work / name, resume=True, report=False, **options, **more)
        seconds[name] = time.process_time() - start
        return calculator

    one = FinetunedCalculator(first) if first else fit("one", "7net-0", files["first"])
    replay = ["embedded", files["first"]] if first else "embedded"
    model = first or work / "one" / "model"
    two = fit("two", model, files["second"], replay=replay)
    anew = fit("anew", "7net-0", [files["first"], files["second"]])
    models = {"untouched": FinetunedCalculator("7net-0"), "first round": one, "second round": two, "anew": anew}
    return {
        "errors": {name: _errors(calc.potential, sets) for name, calc in models.items()},
        "kept": {name: calc.metadata.get("outcome") for name, calc in models.items()},
        "cpu_seconds": seconds,
    }


def _errors(potential: Potential, sets: dict[str, FrameSet]) -> dict[str, dict[str, float]]:
    names = ("forces_mae", "energy_mae", "energy_mae_aligned", "stress_mae")
    found = {name: errors_on(potential, frames) for name, frames in sets.items()}
    return {name: {key: errors.get(key) for key in names} for name, errors in found.items()}


def ensemble(data: Path, work: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Figures of four members."""
    situation = SITUATIONS["lgps20"]
    calc = finetune(
        "7net-0", **situation.sources(data), members=4, output=work / "ensemble", resume=True, report=False, **options
    )
    spreads, errors = [], []
    for frame in situation.unseen(data):
        atoms = frame.atoms.copy()
        atoms.calc = calc
        errors.append(np.linalg.norm(atoms.get_forces() - frame.forces, axis=1))
        spreads.append(np.linalg.norm(calc.spread["forces"], axis=1))
    error, spread = np.concatenate(errors), np.concatenate(spreads)
    ranks = [values.argsort().argsort() for values in (error, spread)]
    members = calc.metadata["members"]
    return {
        "held_out": [member["split"] for member in members],
        "different": len({member["data"]["valid"] for member in members}),
        "unchanged": [member["unchanged"] for member in members],
        "kept": [member["outcome"] for member in members],
        "offsets": [member["reference_offsets"] for member in members],
        "mean_error": 1e3 * float(error.mean()),
        "mean_spread": 1e3 * float(spread.mean()),
        "rank_correlation": float(np.corrcoef(*ranks)[0, 1]),
    }


def main() -> None:
    """Run what is named, print and keep it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.science.second_rounds", description=__doc__)
    parser.add_argument("what", nargs="*", default=["rounds", "ensemble"], help="rounds, ensemble")
    parser.add_argument("--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"))
    parser.add_argument("--work", type=Path, default=Path("runs/second_rounds"))
    parser.add_argument("--first", type=Path, help="the model of the first round, if there is one")
    parser.add_argument("--epochs", type=int, help="fewer than by default")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    options = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    for name in arguments.what:
        data, work = Path(arguments.data), arguments.work
        found = rounds(data, work, options, arguments.first) if name == "rounds" else ensemble(data, work, options)
        content = found | {"options": options, "machine": machine(), "versions": versions(), "commit": commit()}
        (arguments.results / f"{name}.json").write_text(json.dumps(rounded(content), indent=1) + "\n", encoding="utf-8")
        print(json.dumps(rounded(found), indent=1), flush=True)


if __name__ == "__main__":
    main()
