"""What is installed, what works, and which line mends what does not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import torch

from ase_finetune.analysis.compatibility import Problem, diagnose, mend_backends
from ase_finetune.analysis.self_test import Trial, first_line, run_trials
from ase_finetune.errors import BackendNotInstalledError
from ase_finetune.parallel import layout
from ase_finetune.potentials import list_models
from ase_finetune.potentials.imports import import_backend
from ase_finetune.potentials.registry import places_of as model_places
from ase_finetune.representations import counted
from ase_finetune.version import __version__

T = TypeVar("T")

_PACKAGES = """
    ase torch numpy scipy sevenn mace-torch e3nn vesin lightning-fabric safetensors jsonargparse cuequivariance
    cuequivariance-torch
    """.split()

#: Distribution and a module that pulls in all that is needed, by backend.
_BACKENDS = {"sevenn": ("sevenn", "sevenn.model_build"), "mace": ("mace-torch", "mace.modules")}
_UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class DoctorReport:
    """What :func:`doctor` found; ``print`` shows it.

    Attributes
    ----------
    sections
        Title, and lines of name and value.
    backends
        By name, ``""`` if usable, or why not.
    trials
        Outcomes of the self-test.
    problems
        What is not as it should be, each with what mends it.
    seconds
        All of it took.
    """

    sections: dict[str, list[tuple[str, str]]]
    backends: dict[str, str]
    trials: tuple[Trial, ...]
    problems: tuple[Problem, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether at least one backend is usable and no test failed."""
        return "" in self.backends.values() and all(trial.passed is not False for trial in self.trials)

    def __str__(self) -> str:
        lines = []
        for title, rows in self.sections.items():
            lines += [title, *(f"  {name:22s}{value}" for name, value in rows), ""]
        if self.trials:
            lines += ["self-test", *(_trial_line(trial) for trial in self.trials), ""]
        for problem in self.problems:
            lines += [f"{'problem' if problem.serious else 'warning'}: {problem.text}", f"    {problem.remedy}"]
        verdict = "ready" if self.ok else "NOT ready"
        usable = [name for name, reason in self.backends.items() if not reason]
        with_them = f"with {' and '.join(usable)}" if usable else "without a backend"
        return "\n".join([*lines, f"{verdict} {with_them}; examined in {self.seconds:.1f} s"])


def doctor(*, self_test: bool = True) -> DoctorReport:
    """Look at the installation and try it.

    Nothing is downloaded or written but a temporary folder, and nothing raises: what is broken becomes a problem
    of the report.

    Parameters
    ----------
    self_test
        Try each usable backend for a few seconds: forces against differences of energies, the same numbers on a
        GPU, and one step of :func:`ase_finetune.finetune`.
    """
    start = time.perf_counter()
    found = _Findings()
    installed = found.safely("the versions", _installed) or {}
    found.problems += found.safely("what is required", lambda: diagnose(installed, _required())) or []
    backends = {name: _backend(name, installed, found) for name in _BACKENDS}
    sections = {
        "versions": [("ase_finetune", __version__), ("python", _python()), *_versions(installed)],
        "backends": [(name, reason or "usable") for name, reason in backends.items()],
        "devices": found.safely("the devices", lambda: _devices(found)) or [],
        "pretrained models": found.safely("the models", _models) or [],
        "processes": found.safely("the processes", _processes) or [],
    }
    found.safely("the environment", lambda: _environment(found))
    usable = [name for name, reason in backends.items() if not reason]
    trials = (found.safely("the self-test", lambda: _trials(usable)) or ()) if self_test else ()
    return DoctorReport(sections, backends, trials, tuple(found.problems), time.perf_counter() - start)


class _Findings:
    """Problems as they come."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, text: str, remedy: str, *, serious: bool = True) -> None:
        self.problems.append(Problem(text, remedy, serious))

    def safely(self, what: str, work: Callable[[], T]) -> T | None:
        """The result, or a problem: a doctor who dies at the bedside helps nobody."""
        try:
            return work()
        except Exception as error:  # noqa: BLE001  # see above
            self.add(
                f"{what} cannot be determined: {first_line(error)}",
                "pip check   # names packages that do not fit together",
            )
            return None


def _trial_line(trial: Trial) -> str:
    verdict = {True: "passed", False: "FAILED", None: "left out"}[trial.passed]
    return f"  {trial.name:22s}{verdict}, {trial.detail} ({trial.seconds:.1f} s)"


def _python() -> str:
    return f"{platform.python_version()}, {platform.platform()}"


def _installed() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            # A torn installation has metadata without a version.
            found[name] = str(importlib.metadata.version(name) or "0")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _required() -> dict[str, str]:
    """Lowest versions that our own metadata asks for, of what is looked at here."""
    lines = importlib.metadata.requires("ase_finetune") or []
    matches = [re.match(r"([\w.-]+)(?:\[.*?\])?\s*>=\s*([\d.]+)", line) for line in lines if "extra ==" not in line]
    return {match[1]: match[2] for match in matches if match is not None and match[1] in _PACKAGES}


def _versions(installed: dict[str, str]) -> list[tuple[str, str]]:
    rows = {name: installed.get(name, "-") for name in _PACKAGES if name in installed or "cueq" not in name}
    if "torch" in rows:
        rows["torch"] += f", built for CUDA {torch.version.cuda}" if torch.version.cuda else ", built without CUDA"
    return list(rows.items())


def _backend(name: str, installed: dict[str, str], found: _Findings) -> str:
    """Why a backend is not usable, or nothing."""
    package, module = _BACKENDS[name]
    if package not in installed:
        return f'not installed (pip install "ase_finetune[{name}]")'
    known = [problem for problem in diagnose(installed) if problem.serious]
    try:
        import_backend(module, f'"{package}"')
    except Exception as error:  # noqa: BLE001  # packages of other versions fail in any way
        cause = error.__cause__ if isinstance(error, BackendNotInstalledError) and error.__cause__ else error
        text = f"does not import: {first_line(cause)}"
        # pip sees versions that do not fit and requirements that are missing, and nothing else.
        seen = bool(known) or isinstance(cause, ModuleNotFoundError)
        remedy = mend_backends(installed) if seen else "pip check   # names packages that do not fit together"
        found.add(f"{package} {installed[package]} {text}", remedy)
        return text
    return next((f"does not work: {problem.text}" for problem in known if problem.text.startswith(f"{package} ")), "")


def _devices(found: _Findings) -> list[tuple[str, str]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows = [("cpu", f"{counted(cores, 'core')}, {counted(torch.get_num_threads(), 'thread')}")]
    for index in range(torch.cuda.device_count()):
        free, total = (amount / 2**30 for amount in torch.cuda.mem_get_info(index))
        rows.append((f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {free:.0f} of {total:.0f} GiB free"))
    if torch.backends.mps.is_available():
        rows.append(("mps", "there, but without float64; device='auto' uses the CPU"))
    driver = _DRIVER.exists() or shutil.which("nvidia-smi") is not None
    if driver and torch.version.cuda is None:
        found.add(
            "there is an NVIDIA driver, and torch is built without CUDA",
            "pip install --force-reinstall torch   # from the default index",
            serious=False,
        )
    elif driver and not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "the driver may be too old for it" if hidden is None else f"CUDA_VISIBLE_DEVICES is {hidden!r}"
        remedy = (
            "nvidia-smi   # shows the CUDA version of the driver" if hidden is None else "unset CUDA_VISIBLE_DEVICES"
        )
        found.add(f"torch with CUDA {torch.version.cuda} finds no GPU: {why}", remedy, serious=False)
    return rows


def _models() -> list[tuple[str, str]]:
    models = list_models()
    rows = [
        (kind, ", ".join(names))
        for kind in ("shipped", "cached")
        if (names := [info.name for info in models if info.availability == kind])
    ]
    rows.append(("to download", f"{sum(info.availability == 'download' for info in models)} (ase-finetune models)"))
    for backend in _BACKENDS:
        info = next(info for info in models if info.backend == backend)
        cache = model_places(info)[-1][0].parents[len(PurePosixPath(info.file).parts) - 1]
        there = next(folder for folder in (cache, *cache.parents) if folder.exists())
        rows.append((f"cache of {backend}", f"{cache}, {shutil.disk_usage(there).free / 2**30:.0f} GiB free"))
    return rows


def _processes() -> list[tuple[str, str]]:
    found = layout(os.environ)
    if found is None:
        return [("alone", "neither torchrun nor srun started several")]
    on_node, nodes, launcher = found
    return [(launcher, f"{on_node} processes on each of {nodes} nodes")]


def _environment(found: _Findings) -> None:
    if os.environ.get(_UNSAFE, "").lower() in ("1", "y", "yes", "true"):
        found.add(
            f"{_UNSAFE} is set: loading a model of a stranger may run its code", f"unset {_UNSAFE}", serious=False
        )


def _trials(usable: list[str]) -> tuple[Trial, ...]:
    devices = ["cuda"] if torch.cuda.is_available() else []
    # Processes would wait for each other in fine-tuning.
    alone = layout(os.environ) is None
    trials = [trial for name in usable for trial in run_trials(name, devices, fit=alone)]
    if not alone:
        trials.append(Trial("finetune", None, "started as several processes; run the doctor without torchrun or srun"))
    return tuple(trials)
