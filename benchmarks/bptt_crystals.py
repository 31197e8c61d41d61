"""Training on where relaxations end: SevenNet-0 on hypothetical crystals, against cheaper ways at the same budget.

python -m benchmarks.bptt_crystals --data PATH [--form short|hour|full] [--only bptt bptt+reewc] [--results FOLDER]

Trains on pairs of initial and DFT-relaxed crystals, none of them of a reduced formula that is held out, and relaxes the
held-out pairs to convergence. Each way writes its result into the folder and is not run again if it is there, so
that a study can be finished over several sessions; the table at the end is made of what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.data import PairSet, read_frames, read_pairs
from ase_finetune.metrics import evaluate
from ase_finetune.trajectories import evaluate_relaxations
from benchmarks.crystals_table import table
from benchmarks.paired import machine

MODEL = "7net-0"
#: Pairs to train on, epochs, pairs held out; an hour is meant for 2 CPU cores and one way.
FORMS = {"short": (16, 1, 6), "hour": (240, 3, 60), "full": (10_000, 8, 120)}

#: Starting at the DFT minimum is the shorter way to the same minimum, and the pairs that leave it for another basin
#: must not decide the step: the prototypes behind this choice are in docs/relaxations.md.
BPTT: dict[str, Any] = {"batch_size": 8, "learning_rate": 5e-4, "steps": 15, "start": "relaxed", "robust": 0.1}
COMMON: dict[str, Any] = {
    "valid_relaxations": None,  # the last epoch is kept: no way has the luck of a choice
    "replay_size": 120,
    "replay_batch_size": 4,
    "monitor_size": 24,
    "fisher_size": 60,
    "seed": 0,
}


def formula(atoms: Atoms) -> str:
    reduced, _ = atoms.symbols.formula.reduce()
    return str(reduced.format("hill"))


def read(data: Path, count: int, held_out: int) -> tuple[PairSet, PairSet]:
    """Training and held-out pairs without a common reduced formula."""
    train, valid = (
        read_pairs([data / f"crystal_pairs_{part}_{end}.extxyz" for end in ("initial", "relaxed")], name=part)
        for part in ("train", "valid")
    )
    valid = valid[:held_out]
    taken = {formula(pair.initial) for pair in valid}
    free = [index for index, pair in enumerate(train) if formula(pair.initial) not in taken]
    return train.select(free[:count]), valid


def at_rest(pairs: PairSet) -> list[Atoms]:
    """The DFT minima with their forces and stress: zero."""
    frames = []
    for pair in pairs:
        atoms = pair.relaxed.copy()
        atoms.calc = SinglePointCalculator(atoms, forces=np.zeros((len(atoms), 3)), stress=np.zeros(6))
        frames.append(atoms)
    return frames


def zero_force(pairs: PairSet, epochs: int, data: Path) -> FinetunedCalculator:
    """The shortcut: no relaxation, but zero force and stress where DFT is at rest; three times the updates of BPTT."""
    del data
    options = {name: value for name, value in COMMON.items() if name != "valid_relaxations"}
    return finetune(MODEL, at_rest(pairs), None, method="naive", epochs=epochs * 3, batch_size=8, **options)


def two_stages(pairs: PairSet, epochs: int, data: Path) -> FinetunedCalculator:
    """The workflow of the paper: frames of relaxations, then BPTT on their end points."""
    del pairs
    frames = list(read_frames(data / "relax_trajectories.extxyz"))
    runs: dict[str, list[Any]] = {}
    for frame in frames:
        runs.setdefault(str(frame.atoms.info["run"]), []).append(frame.atoms)
    ends = [(path[0], path[-1]) for path in runs.values()]
    sampled = read_frames(data / "relax_trajectories.extxyz", name="train").select(range(0, len(frames), 16))
    return finetune(
        MODEL,
        sampled,
        None,
        relaxations=ends,
        method="bptt",
        epochs=epochs,
        bptt=BPTT | {"epochs": 4 * epochs, "batch_size": 2},
        **COMMON,
    )


def untouched(pairs: PairSet, epochs: int, data: Path) -> FinetunedCalculator:
    del pairs, epochs, data
    return FinetunedCalculator(MODEL)


def through(method: str = "bptt", **options: Any) -> Callable[[PairSet, int, Path], FinetunedCalculator]:
    """Training through relaxations with these options."""

    def way(pairs: PairSet, epochs: int, data: Path) -> FinetunedCalculator:
        del data
        return finetune(MODEL, relaxations=pairs, method=method, bptt=BPTT | {"epochs": epochs} | options, **COMMON)

    return way


WAYS: dict[str, Callable[[PairSet, int, Path], FinetunedCalculator]] = {
    "untouched": untouched,
    "bptt": through(),
    "bptt+reewc": through("bptt+reewc"),
    "zero force": zero_force,
    "frames, then bptt": two_stages,
    "unrolled": through(gradient="unrolled"),
    "truncated": through(gradient="truncated", window=5),
    "implicit": through(gradient="implicit", steps=150),
    "guided": through(gradient="guided", steps=150),
}


def judge(calc: FinetunedCalculator, held_out: PairSet, data: Path) -> dict[str, Any]:
    """Where the held-out structures end, and what is left of MPtrj."""
    initial, relaxed = [pair.initial for pair in held_out], [pair.relaxed for pair in held_out]
    errors = evaluate_relaxations(calc, initial, relaxed, cell=True, fmax=0.03, steps=500)
    frames = read_frames(data / "mptrj_retention.extxyz").select(range(70))
    retention = evaluate(calc.potential, frames.graphs(calc.potential.cutoff, calc.potential.dtype))
    assert retention is not None
    return {
        "pairs": [vars(error) | {"name": pair.name} for error, pair in zip(errors, held_out, strict=True)],
        "retention": retention.to_dict(),
    }


def run(name: str, arguments: argparse.Namespace, train: PairSet, held_out: PairSet, epochs: int) -> None:
    file = arguments.results / f"{name.replace(' ', '-').replace(',', '')}.json"
    if file.exists():
        print(f"{name}: {file} is there already")
        return
    print(f"--- {name}", flush=True)
    start = time.perf_counter()
    calc = WAYS[name](train, epochs, arguments.data)
    seconds = time.perf_counter() - start
    result = {
        "name": name,
        "form": arguments.form,
        "seconds": seconds,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "stages": calc.metadata.get("stages"),
        "history": calc.history,
        **judge(calc, held_out, arguments.data),
    }
    file.write_text(json.dumps(result, indent=1), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"))
    parser.add_argument("--form", choices=FORMS, default="hour")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--results", type=Path, default=Path("runs/bptt_crystals"))
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args(argv)
    if arguments.data is None:
        parser.error("needs the research data: --data PATH or ASE_FINETUNE_DATA")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.results.mkdir(parents=True, exist_ok=True)
    count, epochs, held = FORMS[arguments.form]
    train, held_out = read(Path(arguments.data), count, held)
    print(f"{machine()}\n{len(train)} pairs to train on, {len(held_out)} held out, no reduced formula in both")
    for name in arguments.only:
        run(name, arguments, train, held_out, epochs)
    print(table(sorted(arguments.results.glob("*.json"))))


if __name__ == "__main__":
    main()
