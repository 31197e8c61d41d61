"""What a run of finetune() gives, as far as it must not change, JSON-able.

Taken through what users see: the calculator, its history and metadata, and the run folder. The steps of the optimizer
are noted by torch's own hook on all optimizers, so that no module of the package is named here.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.errors import RunStoppedError
from tests import morse
from tests.golden.cases import arguments

#: Columns of the history that differ from run to run.
UNSTEADY = ("seconds", "peak_memory_gb")

#: What is kept of the metadata. The options are not: where they are kept is to change.
METADATA = (
    "base_hash",
    "split",
    "isolated_atoms",
    "data",
    "reference_offsets",
    "rounds",
    "frozen",
    "fisher",
    "stages",
    "unchanged",
    "outcome",
)


def kind_of_machine() -> dict[str, str]:
    """What the last bits of a result depend on."""
    return {"torch": re.sub(r"\+.*", "", torch.__version__), "cpu": _processor()}


def _processor() -> str:
    """What decides in which order numbers are added: the instruction set, and the kind of processor."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    found = (re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE) for key in ("model name", "cpu family", "model"))
    kind = " ".join(match.group(1) for match in found if match) or "unknown"
    return f"{torch.backends.cpu.get_cpu_capability()}, {kind}"


def outputs(name: str, folder: Path, stops: Iterable[int] = (), stopped_here: bool = True) -> dict[str, Any]:
    """Make the run of a case, and collect what it gives.

    Parameters
    ----------
    name
        Of the case.
    folder
        For the run folder, and the files that the run reads.
    stops
        Interrupt the run after these steps of the optimizer, counted over all of its starts, and go on.
    stopped_here
        Whether this is the process that is sent the signals.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given, output = arguments(name, folder), folder / "run"
    with noted_steps() as steps:
        for stop in stops:
            try:
                with signalled_at(stop - len(steps) if stopped_here else 0):
                    finetune(**given, output=output, resume=True)
            except RunStoppedError:
                continue
            raise AssertionError(f"{name} ended before step {stop}")
        calculator = finetune(**given, output=output, resume=True)
    text = json.dumps(_collected(calculator, output)).replace(str(folder), "FOLDER")
    return kind_of_machine() | json.loads(text) | {"steps": steps}


def _collected(calculator: FinetunedCalculator, output: Path) -> dict[str, Any]:
    history = [{key: value for key, value in row.items() if key not in UNSTEADY} for row in calculator.history]
    metadata, folders = calculator.metadata, [output]
    runs = metadata.get("members", [metadata])
    if "members" in metadata:
        folders = [output / f"member-{number}" for number in range(len(runs))]
    kept = [weights(potential) for potential in calculator.potentials]
    saved = [weights(potential) for path in folders for potential in _load(path / "model").potentials]
    assert saved == kept, "the model in the folder is not the one that is returned"
    for path, run in zip(folders, runs, strict=True):
        written = json.loads((path / "run.json").read_text(encoding="utf-8"))
        assert written["outcome"] == run["outcome"]
        assert (path / "log.txt").read_text(encoding="utf-8").splitlines()[-1] == run["outcome"]
    return {
        "history": history,
        "columns": [list(_header(path / "history.csv", len(history) // len(folders))) for path in folders],
        "metadata": [{key: run.get(key) for key in METADATA} for run in runs],
        "kept": kept,
        "last": [weights(potential) for path in folders for potential in _load(path / "last").potentials],
        "predictions": predictions(calculator),
    }


def _load(path: Path) -> FinetunedCalculator:
    return FinetunedCalculator(path, device="cpu", dtype="float64")


def _header(file: Path, rows: int) -> list[str]:
    """Titles of the history's table, which has as many rows as there were epochs."""
    with file.open(encoding="utf-8", newline="") as lines:
        header, *found = csv.reader(lines)
    assert len(found) == rows
    return header


def weights(potential: torch.nn.Module) -> dict[str, list[Any]]:
    """Of each parameter a hash, the sum and the norm."""
    return {name: [digest([value]), *_sums([value])] for name, value in morse.weights(potential).items()}


def predictions(calculator: FinetunedCalculator) -> list[list[float]]:
    """Energy, norm of the forces and pressure of two structures."""
    found = calculator.calculate_many([*morse.silicon(1, 30), *morse.oxide(1, 31)])
    return [
        [float(each["energy"]), _sums([torch.tensor(each["forces"])])[1], float(each["stress"][:3].sum())]
        for each in found
    ]


def digest(tensors: Iterable[Tensor]) -> str:
    """A hash of tensors that does not depend on their order."""
    each = sorted(hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest() for value in tensors)
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16]


def _sums(tensors: Iterable[Tensor]) -> list[float]:
    """Sum and norm, rounded once and so the same in any order."""
    values = [number for value in tensors for number in value.detach().double().flatten().tolist()]
    return [_sum(values), math.sqrt(_sum([number * number for number in values]))]


def _sum(values: list[float]) -> float:
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


@contextmanager
def noted_steps() -> Iterator[list[dict[str, Any]]]:
    """Note every step of an optimizer: learning rates, norm of the gradient, and the weights that it leads to."""
    steps: list[dict[str, Any]] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        groups = optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        steps.append(
            {
                "learning_rates": sorted({float(group["lr"]) for group in groups}),
                "gradient_norm": _sums(gradients)[1],
                "sum": _sums(parameters)[0],
                "norm": _sums(parameters)[1],
                "weights": digest(parameters),
            }
        )

    handle = register_optimizer_step_post_hook(note)
    try:
        yield steps
    finally:
        handle.remove()


@contextmanager
def signalled_at(number: int) -> Iterator[None]:
    """Ask this process to stop after so many further steps of an optimizer; never for 0."""
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made == number:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        handle.remove()


def dumps(found: dict[str, Any]) -> str:
    """As JSON, with one line for each epoch, step and parameter; floats as repr, all of their digits."""
    lines = []
    for key, value in found.items():
        if key in ("history", "steps"):
            inner = ",\n  ".join(json.dumps(item) for item in value)
            text = f"[\n  {inner}\n ]"
        elif key in ("kept", "last"):
            models = (",\n   ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in item.items()) for item in value)
            text = "[{}]".format(", ".join(f"{{\n   {model}\n  }}" for model in models))
        elif key == "metadata":
            text = json.dumps(value, indent=1).replace("\n", "\n ")
        else:
            text = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
