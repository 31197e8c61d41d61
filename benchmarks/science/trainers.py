"""The same reEWC by sevenn 0.13's own trainer and by ours: python -m benchmarks.science.trainers --quick --data FOLDER.

Both start from 7net-0 and make the same steps: the same target and replay structures in the same order, the published
loss, Fisher information, anchor and lambda, the same learning rates, the same parameters frozen, raw energies. After
every few pairs of steps each side writes its weights, and one code judges all of them. A side that is finished is not
run again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ase_finetune import FinetuneConfig
from ase_finetune.continual import load_anchor
from ase_finetune.files import make_folder, to_json, write_text
from ase_finetune.finetuning.state import copy_into
from ase_finetune.metrics import evaluate
from ase_finetune.potentials import load_potential
from ase_finetune.potentials.devices import resolve_device
from benchmarks.inputs import MODEL
from benchmarks.paired import machine
from benchmarks.science.storing import commit, rounded
from benchmarks.science.trainers_shown import draw, table
from benchmarks.science.trainers_sides import (
    Chosen,
    Work,
    choose,
    ours,
    ours_one_by_one,
    plan_steps,
    sevenns,
    sevenns_as_it_comes,
    weights,
)
from benchmarks.suite import Setting

#: In the order they are run.
SIDES: dict[str, Callable[[Work, Path], Iterator[dict[str, Any]]]] = {
    "ours": ours,
    "sevenn": sevenns,
    "sevenn-as-it-comes": sevenns_as_it_comes,
    "ours-one-by-one": ours_one_by_one,
}


@dataclass(frozen=True)
class Form:
    """How much is done.

    Attributes
    ----------
    frames, batch, epochs
        Target frames, and structures of a target step and of a replay step.
    replay, old
        Structures that are replayed, and others by which forgetting is judged.
    valid
        Held-out target frames.
    largest
        Atoms of an old structure, at most.
    every
        Pairs of steps between two points of the curves.
    """

    frames: int
    batch: int
    epochs: int
    replay: int
    old: int
    valid: int
    largest: int | None
    every: int


FORMS = {
    "quick": Form(frames=60, batch=4, epochs=3, replay=120, old=30, valid=20, largest=20, every=5),
    "full": Form(frames=600, batch=8, epochs=10, replay=500, old=200, valid=100, largest=None, every=25),
}


@dataclass(frozen=True)
class Sources:
    """Files: target frames to train on and to judge by, old structures likewise, Fisher information and anchor."""

    target: Path
    valid: Path
    replay: Path
    old: Path
    fisher: Path
    anchor: Path

    @classmethod
    def of(cls, data: Path) -> Sources:
        """Those of the study, in the folder of the research data."""
        return cls(
            target=data / "lgps_train.extxyz",
            valid=data / "lgps_valid.extxyz",
            replay=data / "mptrj_replay.extxyz",
            old=data / "mptrj_retention.extxyz",
            fisher=data / "published_reewc" / "fisher_sevenn.pt",
            anchor=data / "published_reewc" / "opt_params_sevenn.pt",
        )


def published(form: Form, seed: int) -> FinetuneConfig:
    """The published settings; loss and warm-up are those by default. The rate of a step is that of our schedule."""
    return FinetuneConfig(
        method="reewc",
        epochs=form.epochs,
        batch_size=form.batch,
        replay_batch_size=form.batch,
        learning_rate=1e-4,
        clip_norm=None,
        reference="none",
        replay_labels="data",
        ewc_lambda=1e5,
        seed=seed,
    )


def plan(form: Form, sources: Sources, seed: int, all_parameters: bool, setting: Setting) -> Work:
    """What both sides do."""
    config = published(form, seed)
    target = choose(sources.target, form.frames)
    replay = choose(sources.replay, form.replay, form.largest)
    parts = plan_steps(config, len(target.numbers), len(replay.numbers), form.every)
    return Work(config, target, replay, sources.fisher, sources.anchor, parts, all_parameters, setting)


class Judge:
    """Errors of weights on held-out frames, by one code whoever trained them."""

    def __init__(self, valid: Chosen, old: Chosen, device: torch.device) -> None:
        self._potential, _ = load_potential(MODEL, device=device)
        self._sets = {
            name: chosen.frames.graphs(self._potential.cutoff) for name, chosen in {"target": valid, "old": old}.items()
        }

    def __call__(self, path: Path) -> dict[str, dict[str, float | None]]:
        """By set."""
        copy_into(self._potential.native_parameters(), load_anchor(path))
        found = {name: evaluate(self._potential, graphs) for name, graphs in self._sets.items()}
        return {name: errors.to_dict() for name, errors in found.items() if errors is not None}


def run_side(name: str, work: Work, judge: Judge, folder: Path) -> dict[str, Any]:
    """Train and judge: the curve of one side."""
    about, *times = SIDES[name](work, folder)
    made = [0, *(len(part.target) for part in work.parts)]
    curve = []
    for number, time_taken in enumerate([{}, *times]):
        point = {"pairs": sum(made[: number + 1]), "sets": judge(weights(folder, number)), **time_taken}
        curve.append(point)
    return {"side": name, **about, "curve": curve}


def distances(folder: Path, other: Path, parts: int) -> list[float]:
    """How far apart the weights of two sides are after each part, as a fraction of how far the second one has moved."""
    start = load_anchor(weights(other, 0))
    found = []
    for number in range(1, parts + 1):
        mine, its = (load_anchor(weights(side, number)) for side in (folder, other))
        apart, moved = (sum(float((its[n] - x[n]).double().square().sum()) for n in its) for x in (mine, start))
        found.append((apart / moved) ** 0.5)
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.science.trainers", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="the form for a CPU; otherwise the full one, for a GPU")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours", "sevenn"], help="who trains")
    parser.add_argument(
        "--all-parameters", action="store_true", help="train shifts, scales and denominators, too, as was published"
    )
    parser.add_argument("--draw", action="store_true", help="run nothing, make table and picture")
    parser.add_argument("--data", type=Path, default=os.environ.get("ASE_FINETUNE_DATA"), help="research data")
    parser.add_argument("--newest-sevenn", type=Path, default=Setting.newest_sevenn, help="Python with sevenn >= 0.13")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of results")
    parser.add_argument("--work", type=Path, default=Path("runs/science"), help="folder of weights")
    parser.add_argument("--picture", type=Path, default=Path("runs/science/science_trainers.png"))
    parser.add_argument("--device", default="auto", help="a torch device; auto is a GPU where there is one")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--seed", type=int, default=0, help="of the order of structures")
    arguments = parser.parse_args(argv)
    if arguments.data is None and not arguments.draw:
        parser.error("needs the research data: --data FOLDER or ASE_FINETUNE_DATA")
    # Not resolved: the interpreter of a virtual environment is a link, and knows its packages by its place.
    arguments.newest_sevenn = arguments.newest_sevenn.absolute()
    if not arguments.newest_sevenn.exists() and not arguments.draw:
        parser.error(f"{arguments.newest_sevenn} does not exist; build it with: make .venv-newest-sevenn/ready")
    return arguments


def result_file(folder: Path, name: str, seed: int) -> Path:
    """Where the result of a side is kept."""
    return folder / f"{name}-s{seed}.json"


def run(form: Form, sources: Sources, arguments: argparse.Namespace, results: Path, work_folder: Path) -> None:
    """Run the sides whose results are missing.

    Parameters
    ----------
    form, sources
        How much of what.
    arguments
        Of the command line: sides, device, newest_sevenn, seed, all_parameters.
    results, work_folder
        Folders of results and of weights.
    """
    waiting = [name for name in arguments.sides if not result_file(results, name, arguments.seed).exists()]
    if not waiting:
        return
    setting = Setting(device=resolve_device(arguments.device), newest_sevenn=arguments.newest_sevenn)
    work = plan(form, sources, arguments.seed, arguments.all_parameters, setting)
    judge = Judge(choose(sources.valid, form.valid), choose(sources.old, form.old, form.largest), setting.device)
    done = {
        "form": asdict(form),
        "seed": arguments.seed,
        "all_parameters": arguments.all_parameters,
        "config": work.config.to_dict(),
        "machine": machine(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    make_folder(results)
    for name in waiting:
        print(f"--- {name}", flush=True)
        result = run_side(name, work, judge, work_folder / name)
        # The weights of an earlier run may be gone; then nothing is told of their distance.
        if name != "ours" and weights(work_folder / "ours", len(work.parts)).exists():
            result["apart"] = distances(work_folder / "ours", work_folder / name, len(work.parts))
        write_text(result_file(results, name, arguments.seed), to_json(rounded(done | result), name) + "\n")


def read(results: Path, seed: int) -> dict[str, dict[str, Any]]:
    """The results there are, by side."""
    paths = {name: result_file(results, name, seed) for name in SIDES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, and show what is known."""
    arguments = parse(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # deprecations inside e3nn and sevenn would bury the results
    print(machine())
    name = "quick" if arguments.quick else "full"
    folder = f"trainers-{name}{'-all-parameters' if arguments.all_parameters else ''}"
    results = arguments.results / folder
    if not arguments.draw:
        run(
            FORMS[name],
            Sources.of(Path(arguments.data)),
            arguments,
            results,
            arguments.work / folder / f"s{arguments.seed}",
        )
    found = read(results, arguments.seed)
    print(table(found))
    print(f"picture: {draw(found, arguments.picture)}" if len(found) > 1 else "no picture yet")


if __name__ == "__main__":
    main()
