"""What two processes are made to do together, and one alone, in tests/test_parallel.py.

python -m tests.parallel_worker FOLDER
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from ase.db import connect
from torch import nn

from ase_finetune import finetune
from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.continual import empirical_fisher, gaussian_fisher
from ase_finetune.errors import FinetuneError, RunStoppedError, TrainingError
from ase_finetune.finetuning.keeping import RunKeeper
from ase_finetune.finetuning.training import Trainer
from ase_finetune.finetuning.updating import Piece, PieceLoss, Updater
from ase_finetune.losses import Loss
from ase_finetune.metrics import evaluate
from ase_finetune.optimize import relax
from ase_finetune.parallel import Processes, launched
from ase_finetune.potentials.batched import predict_many
from ase_finetune.potentials.memory import EdgeBudget
from tests import morse

TRAIN = morse.labelled(morse.silicon(11, 1))
VALID = morse.labelled(morse.silicon(5, 2))
OLD = morse.oxide(12, 3)
METHODS = {
    "naive": {"method": "naive"},
    "alternate": {"method": "reewc", "ewc_lambda": 0.1},
    "joint": {"method": "reewc", "ewc_lambda": 0.1, "replay_schedule": "joint", "replay_batch_size": 3},
    "bound": {"method": "ewc", "ewc_lambda": 0.1, "max_forgetting": 0.01},
    "pieces": {"method": "replay", "max_edges": 150, "ema_decay": 0.9},
    # Batches of one frame leave a process without a share, and a worker process without a graph.
    "streamed": {"method": "naive", "batch_size": 2, "stream": True, "num_workers": 1},
    "later round": {"method": "reewc", "original": morse.truth(), "replay": [OLD, morse.labelled(morse.silicon(5, 9))]},
    "empirical": {"method": "ewc", "fisher": "empirical", "fisher_probes": 2, "replay": morse.labelled(OLD)},
}


def fits(folder: Path, processes: Processes) -> dict[str, Any]:
    """Histories and weights of every method."""
    found = {}
    database = folder / f"frames{processes.rank}.db"
    with connect(database) as rows:
        for atoms in TRAIN:
            rows.write(atoms)
    for name, options in METHODS.items():
        shared = {"epochs": 2, "batch_size": 3, "monitor_size": 4, "learning_rate": 0.02, "dtype": "float64"}
        output, train = folder / name, database if "stream" in options else TRAIN
        calc = finetune(
            morse.pretrained(), train, VALID, output=output, **({"replay": OLD, "device": "cpu"} | shared | options)
        )
        history = [{k: v for k, v in row.items() if k not in ("seconds", "peak_memory_gb")} for row in calc.history]
        found[name] = {"history": history, "weights": weights(calc), "model": calc.parameters["model"]}
    pairs = [(start, end) for start, end in zip(morse.silicon(5, 4), morse.silicon(5, 5), strict=True)]
    bptt = {"epochs": 2, "batch_size": 4, "steps": 4, "optimizer": "gradient-descent", "valid_steps": 20}
    shared = {"replay": OLD, "monitor_size": 4, "dtype": "float64", "device": "cpu", "verbose": False}
    calc = finetune(morse.pretrained(), relaxations=pairs, valid_relaxations=0.4, method="bptt", bptt=bptt, **shared)
    history = [{k: v for k, v in row.items() if k not in ("seconds", "peak_memory_gb")} for row in calc.history]
    return found | {"bptt": {"history": history, "weights": weights(calc), "model": ""}}


def resumed(folder: Path, processes: Processes) -> dict[str, Any]:
    """A run of which one process is asked to stop in the middle of an epoch, and what it ends with when resumed."""
    output = folder / "resumed"
    options = METHODS["alternate"] | {"epochs": 2, "batch_size": 3, "monitor_size": 4, "learning_rate": 0.02}
    options |= {"replay": OLD, "device": "cpu", "dtype": "float64", "output": output, "verbose": False}
    original, made = RunKeeper.after_step, 0

    def after_step(self: RunKeeper, trainer: Trainer) -> None:
        nonlocal made
        made += 1
        if made == 6 and processes.rank == processes.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer)

    with patch.object(RunKeeper, "after_step", after_step):
        try:
            finetune(morse.pretrained(), TRAIN, VALID, **options)
        except RunStoppedError as stopped:
            told = str(stopped)
    calc = finetune(morse.pretrained(), TRAIN, VALID, resume=True, **options)
    history = [{k: v for k, v in row.items() if k not in ("seconds", "peak_memory_gb")} for row in calc.history]
    return {"told": told, "history": history, "weights": weights(calc)}


def refused(folder: Path, processes: Processes) -> dict[str, Any]:
    """A run on frames of an element that the model does not know, and whether it leaves its folder behind."""
    frames, told = morse.labelled(morse.silicon(4, 1)), ""
    for atoms in frames:
        atoms.numbers[0] = 92
    try:
        finetune(morse.pretrained(), frames, None, output=folder / "refused" / "deep", device="cpu", verbose=False)
    except FinetuneError as error:
        told = type(error).__name__
    processes.agree(None)  # all are done with it
    return {"told": told, "left": (folder / "refused").exists()}


def weights(calc: FinetunedCalculator) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in morse.weights(calc.potential).items()}


def others(processes: Processes) -> dict[str, Any]:
    """Predictions, errors, Fisher information and relaxations."""
    potential = morse.pretrained().double()
    graphs = morse.graphs(TRAIN, potential)
    predictions = predict_many(potential, graphs, processes=processes)
    errors = evaluate(potential, graphs, Loss(), processes=processes)
    assert errors is not None
    fishers = {
        "exact": empirical_fisher(potential, graphs, processes=processes),
        "probes": empirical_fisher(potential, graphs, probes=2, max_edges=300, processes=processes),
        "gaussian": gaussian_fisher(potential, graphs, max_edges=300, draws=3, processes=processes),
    }
    calc = FinetunedCalculator(potential, dtype="float64")
    ends = relax(morse.silicon(5, 7), calc, fmax=0.05, steps=30, processes=processes)
    return {
        "energies": [float(prediction.energy) for prediction in predictions],
        "forces": [float(prediction.forces.square().sum()) for prediction in predictions],
        "errors": errors.to_dict(),
        **{name: {k: v.flatten().tolist() for k, v in fisher.values.items()} for name, fisher in fishers.items()},
        "relaxed": [[end.steps, float(end.atoms.get_potential_energy())] for end in ends],
    }


def failures(processes: Processes) -> dict[str, str]:
    """One process fails: all of them hear of it."""
    told = {}
    try:
        processes.agree(TrainingError("no more") if processes.rank == 1 else None)
    except FinetuneError as error:
        told["agree"] = f"{type(error).__name__}: {error}"
    try:
        processes.on_first(_fail)
    except FinetuneError as error:
        told["on_first"] = f"{type(error).__name__}: {error}"
    theta = nn.Parameter(torch.ones(2))
    updater = Updater(torch.optim.SGD([theta], lr=0.1), processes=processes)

    def loss(_: list[int]) -> PieceLoss:
        if processes.rank == 1:
            raise MemoryError("not even one")
        return PieceLoss(theta.sum(), lambda: None)

    try:
        updater.update([Piece([0], {0: 10}, loss, EdgeBudget(100))])
    except (FinetuneError, MemoryError) as error:
        told["update"] = f"{type(error).__name__}: {error}, {theta.tolist()}"
    return told


def _fail() -> None:
    raise TrainingError("the first one failed")


def main() -> None:
    folder = Path(sys.argv[1])
    # Before anything else: what is registered first is called last.
    atexit.register(lambda: write_whether_joined(folder / f"joined{processes.rank}.json"))
    processes = launched("cpu")
    result = {"size": processes.size, "fits": fits(folder, processes), "others": others(processes)}
    result["resumed"] = resumed(folder, processes)
    result["refused"] = refused(folder, processes)
    if processes.size > 1:
        result["failures"] = failures(processes)
    digest = hashlib.sha256(json.dumps(result["fits"]).encode()).hexdigest()
    result["digests"] = processes.gather(digest)
    (folder / f"rank{processes.rank}.json").write_text(json.dumps(result), encoding="utf-8")


def write_whether_joined(file: Path) -> None:
    file.write_text(json.dumps(torch.distributed.is_initialized()), encoding="utf-8")


if __name__ == "__main__":
    main()
