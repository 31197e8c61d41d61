"""``ase-finetune models | export | doctor``: what there is, and what works."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from jsonargparse import Namespace

from ase_finetune.analysis.doctor import doctor
from ase_finetune.cli.common import MODEL, OVERWRITE, installed_version, load_calculator, model_group
from ase_finetune.cli.options import Group, Option
from ase_finetune.cli.places import check_file
from ase_finetune.cli.terminal import Terminal
from ase_finetune.cli.verbs import Verb
from ase_finetune.errors import InputError
from ase_finetune.files import to_json
from ase_finetune.potentials import ModelInfo, list_models


def _models(options: Namespace, terminal: Terminal) -> int:
    words = [word.lower() for word in options.text or []]
    found = [info for info in list_models() if all(word in _searched(info) for word in words)]
    if options.json:
        terminal.result(to_json([asdict(info) for info in found], "the models"))
        return 0
    if not found:
        raise InputError(f"no pretrained model has {' and '.join(map(repr, words))} in its name, backend or licence")
    lines = [f"{'name':24s}{'backend':9s}{'here':13s}{'elements':>9s}  licence"]
    for info in found:
        elements = "?" if info.elements is None else str(len(info.elements))
        lines.append(f"{info.name:24s}{info.backend:9s}{info.availability:13s}{elements:>9s}  {info.licence}")
    terminal.result("\n".join(lines))
    for info in found:
        notes = [*([f"heads {', '.join(info.heads)}"] if info.heads else []), *([info.note] if info.note else [])]
        if notes:
            terminal.detail(f"{info.name}: {'; '.join(notes)}")
    return 0


def _searched(info: ModelInfo) -> str:
    return " ".join((info.name, *info.aliases, info.backend, info.availability, info.licence)).lower()


MODELS = Verb(
    description="Pretrained models: names, backend, whether they are here (shipped, cached) or are downloaded on first "
    "use, number of elements, licence. With --verbose heads and notes, too.",
    examples=(
        ("all of them", "models"),
        ("those of MACE with a free licence", "models mace MIT"),
        ("what can be used without network, for a script", "models shipped --json"),
    ),
    groups=(
        Group(
            "choice",
            (
                Option("text", list[str] | None, None, "Words that must be there, in any case.", position=True),
                Option("json", bool, False, "As JSON, with elements, heads, links and hashes."),
            ),
        ),
    ),
    run=_models,
)


#: Of native checkpoints, by backend: what the tools that read them look for.
ENDINGS = {"sevenn": ".pth", "mace": ".model", "morse": ".json"}


def _export(options: Namespace, terminal: Terminal) -> int:
    check_file(options.path, overwrite=options.overwrite, inputs=(options.model,))
    calculator = load_calculator(options, terminal)
    backend = calculator.potential.backend
    ending = ENDINGS.get(backend)
    if ending is not None and Path(options.path).suffix != ending:
        raise InputError(f"{options.path} must end in {ending}: that is what a checkpoint of {backend} is called")
    calculator.export(Path(options.path), overwrite=options.overwrite)
    terminal.result(f"written to {options.path}")
    for line in next_steps(backend, options.path, calculator.potential.head if calculator.potential.heads else None):
        terminal.note(line)
    return 0


def next_steps(backend: str, path: str, head: str | None = None) -> list[str]:
    """How a native checkpoint is used: in a script, and last the command that deploys it for LAMMPS.

    Parameters
    ----------
    backend
        Of the model.
    path
        Of the checkpoint.
    head
        In use, where the model has heads.
    """
    if backend == "sevenn":
        modal = f", modal={head!r}" if head else ""
        return [f"in ASE: SevenNetCalculator({path!r}{modal})", f"for LAMMPS: {_deploy_sevennet(path, head)}"]
    if backend == "mace":
        chosen = f" --head {shlex.quote(head)}" if head else ""
        named = f", head={head!r}" if head else ""
        return [
            f"in ASE: MACECalculator(model_paths={path!r}{named})",
            f"for LAMMPS: mace_create_lammps_model {shlex.quote(path)}{chosen}",
        ]
    return []


def _deploy_sevennet(path: str, head: str | None) -> str:
    words = [shlex.quote(path), "-o", shlex.quote(Path(path).stem)]
    if head:  # which only newer versions can deploy
        return " ".join(["sevenn get_model", *words, "--modal", shlex.quote(head)])
    if installed_version("sevenn").startswith("0.10."):
        words.insert(0, "sevenn_get_model")
    else:
        words.insert(0, "sevenn get_model")
    if installed_version("e3nn").startswith("0.4."):  # it does not load on torch >= 2.6 by itself
        words.insert(0, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1")
    return " ".join(words)


EXPORT = Verb(
    description="Write a model in its backend's own format, for SevenNetCalculator, MACECalculator, LAMMPS and others. "
    "Energies are in the pretrained model's reference.",
    examples=(
        ("for SevenNet, and then LAMMPS by sevenn get_model", "export runs/mine/model mine.pth"),
        ("for MACE", "export runs/mace/model mine.model"),
    ),
    groups=(
        Group(
            "files",
            (
                MODEL,
                Option(
                    "path",
                    str | None,
                    None,
                    "File to write: .pth for SevenNet, .model for MACE.",
                    needed=True,
                    position=True,
                ),
                OVERWRITE,
            ),
        ),
        model_group(),
    ),
    run=_export,
)


def _doctor(options: Namespace, terminal: Terminal) -> int:
    with terminal.working("examining"):
        report = doctor(self_test=options.self_test)
    terminal.result(str(report))
    return 0 if report.ok else 1


DOCTOR = Verb(
    description="Versions, backends, devices, models and a short self-test; what does not work comes with the line "
    "that mends it. The exit code is 1 if nothing works.",
    examples=(("", "doctor"), ("without the self-test", "doctor --self_test false")),
    groups=(Group("examination", (Option("self_test", bool, True, "Try each backend for some seconds."),)),),
    run=_doctor,
)
