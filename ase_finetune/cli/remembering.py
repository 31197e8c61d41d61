"""``ase-finetune fisher``: Fisher information in a file, for many fits."""

from __future__ import annotations

from typing import Literal

from jsonargparse import Namespace

from ase_finetune.cli.common import DEVICE, DTYPE, HEAD, MODEL, OVERWRITE, TRUST, for_process
from ase_finetune.cli.options import Group, Option, options_of
from ase_finetune.cli.parsing import as_dict
from ase_finetune.cli.places import check_file
from ase_finetune.cli.terminal import Terminal
from ase_finetune.cli.verbs import Verb
from ase_finetune.continual import FisherInformation
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.fisher import fisher_information
from ase_finetune.parallel import launched

_SHOWN = 8


def _from_fit(*names: str) -> tuple[Option, ...]:
    """Options as ``fit`` has them."""
    return tuple(option for option in options_of(FinetuneConfig) if option.name.split(".")[0] in names)


_DATA = (
    MODEL,
    Option("output", str | None, None, "New file, *.safetensors.", "FILE", needed=True),
    OVERWRITE,
    Option("structures", str, "embedded", "What must not be forgotten: embedded (from MPtrj), or a file.", "FILE"),
    HEAD,
)
_HOW = (
    Option(
        "kind",
        Literal["label-free", "empirical"],
        "label-free",
        "From the model's own predictions (label-free), or from the loss on labels of the file (empirical).",
    ),
    Option("size", int, 200, "Structures it is estimated on."),
    Option("draws", int, 1, "Random draws per structure (label-free)."),
    Option("probes", int | None, None, "Backward passes per batch (empirical); null is exact, one per structure."),
    Option("seed", int, 0, "Of the draws."),
    *_from_fit("monitor_size", "replay_labels", "freeze"),
)


def _run(options: Namespace, terminal: Terminal) -> int:
    processes = launched(options.device)
    terminal = for_process(terminal, processes)
    inputs = (options.model, options.structures)
    processes.on_first(lambda: check_file(options.output, overwrite=options.overwrite, inputs=inputs))
    values = as_dict(options)
    names = ("kind", "size", "draws", "probes", "seed", "monitor_size", "replay_labels", "freeze", "loss", "head")
    fisher = fisher_information(
        options.model,
        options.structures,
        **{name: values[name] for name in (*names, "device", "dtype", "trust_pickle", "output", "overwrite")},
        verbose=terminal.verbosity,
        processes=processes,
    )
    if processes.is_first:
        terminal.result(_table(fisher))
    terminal.note(f"of {fisher.metadata['structures']} structures; written to {options.output}")
    return 0


def _table(fisher: FisherInformation) -> str:
    """The largest shares of the total, by parameter."""
    shares = list(fisher.shares().items())
    lines = [f"{'share':>7s}  {'values':>9s}  parameter"]
    lines += [f"{share:7.1%}  {fisher.values[name].numel():9,d}  {name}" for name, share in shares[:_SHOWN]]
    rest = shares[_SHOWN:]
    if rest:
        lines.append(f"{sum(share for _, share in rest):7.1%}  {'':9s}  in {len(rest)} others")
    return "\n".join(lines)


FISHER = Verb(
    description="Estimate the Fisher information of a model: how much each parameter matters to what it knows. "
    "fit --fisher takes the file, so that many fits need one estimate; the result is the same as without it. "
    "Under torchrun or srun several processes share the work.",
    examples=(
        ("label-free, on the embedded structures", "fisher 7net-0 --output fisher.safetensors"),
        ("and its use", "fit 7net-0 frames.extxyz --fisher fisher.safetensors --output runs/mine"),
        (
            "of labelled frames of your own",
            "fisher 7net-0 --structures old.extxyz --kind empirical --output f.safetensors",
        ),
    ),
    groups=(
        Group("model and structures", _DATA),
        Group("estimate", _HOW),
        Group("loss (empirical: energies in eV/atom, forces in eV/Å, stress in kbar)", _from_fit("loss")),
        Group("machine", (DEVICE, DTYPE, TRUST)),
    ),
    run=_run,
)
