"""What several verbs share: the model and where it runs, and the processes that share the work."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from typing import Literal

from jsonargparse import Namespace

from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.cli.options import Group, Option
from ase_finetune.cli.terminal import Terminal
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.version import __version__

MODEL = Option(
    "model",
    str | None,
    None,
    "Name (ase-finetune models lists them), folder of a saved model or of a run, or checkpoint of SevenNet or MACE.",
    needed=True,
    position=True,
    models=True,
)
HEAD = Option("head", str | None, None, "Head or modality of models that have several.", "NAME")
DEVICE = Option(
    "device",
    str,
    "auto",
    "cpu, cuda, ...; auto takes a GPU where there is one.",
    "NAME",
    choices=("auto", "cpu", "cuda"),
)
DTYPE = Option(
    "dtype",
    str,
    "float32",
    "float32, or float64 for small forces, phonons and finite differences.",
    "NAME",
    choices=("float32", "float64"),
)
TRUST = Option(
    "trust_pickle", bool, False, "Allow a foreign MACE .model file, which can run code (not in config files)."
)
REFERENCE = Option(
    "reference",
    Literal["model", "target"],
    "model",
    "Energies in the reference of the pretrained model, or of the data it was fine-tuned on (target).",
)
ACCELERATE = Option(
    "accelerate",
    Literal["auto", "graph", "none"],
    "auto",
    "On a GPU, record the evaluation as a CUDA graph: auto (where it gives the same numbers), graph (or fail), none.",
)
OVERWRITE = Option("overwrite", bool, False, "Replace an existing file (not in config files).")


def model_group(*more: Option, dtype: str = "float32") -> Group:
    """Options of how a model is used, with the default of its ``dtype``."""
    return Group("model", (HEAD, DEVICE, replace(DTYPE, default=dtype), *more, TRUST))


def load_calculator(options: Namespace, terminal: Terminal, processes: Processes = ALONE) -> FinetunedCalculator:
    """The calculator that the options ask for, with a line while it is loaded."""
    with terminal.working(f"loading {options.model}"):
        calculator = FinetunedCalculator(
            options.model,
            head=options.head,
            device=str(processes.device or options.device),
            dtype=options.dtype,
            reference=options.get("reference") or "model",
            accelerate=options.get("accelerate") or "auto",
            trust_pickle=options.trust_pickle,
        )
    describe_model(calculator, terminal, processes)
    return calculator


def describe_model(calculator: FinetunedCalculator, terminal: Terminal, processes: Processes = ALONE) -> None:
    """Details of a model and of what it runs on."""
    potential, used = calculator.potential, calculator.parameters
    head = f", head {used['head']}" if used["head"] else ""
    count = sum(parameter.numel() for _, parameter in potential.native_parameters())
    terminal.detail(
        f"{used['model']}: {potential.backend}{head}, {count:,d} parameters, {len(potential.numbers)} elements, cutoff "
        f"{potential.cutoff:g} Å; {used['dtype']} on {used['device']}, {processes.size} process(es)"
    )
    packages = [name for name in ("ase", "torch", "sevenn", "mace-torch") if installed_version(name)]
    terminal.detail(
        ", ".join([f"ase_finetune {__version__}", *(f"{name} {installed_version(name)}" for name in packages)])
    )


def for_process(terminal: Terminal, processes: Processes) -> Terminal:
    """The terminal of the process that talks for all; the others are quiet."""
    return terminal if processes.is_first else Terminal(0)


def installed_version(package: str) -> str:
    """The version of a package; empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
