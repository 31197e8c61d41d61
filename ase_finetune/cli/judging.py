"""``ase-finetune evaluate | validate | report``: how good a model is, and what a run has gained and forgotten."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ase_finetune.analysis.evaluation import Evaluation, evaluate_calculator, evaluation_table
from ase_finetune.analysis.reports import compare_runs, report_run
from ase_finetune.analysis.validation import CHECKS, validate
from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.cli.common import (
    DEVICE,
    MODEL,
    OVERWRITE,
    REFERENCE,
    TRUST,
    for_process,
    load_calculator,
    model_group,
)
from ase_finetune.cli.options import Group, Option
from ase_finetune.cli.structures import read_structures
from ase_finetune.cli.terminal import Terminal
from ase_finetune.cli.verbs import Verb
from ase_finetune.data import read_frames
from ase_finetune.errors import InputError, OutputExistsError
from ase_finetune.files import is_there, to_json, write_text
from ase_finetune.parallel import launched

_FRAMES = (
    MODEL,
    Option(
        "frames",
        list[str] | None,
        None,
        "Files of labelled frames, each a line of the table.",
        needed=True,
        position=True,
    ),
    Option("output", str | None, None, "Write the errors as JSON, too.", "FILE"),
    OVERWRITE,
    Option("energy_key", str | None, None, "Name of the energies in the files where it is not ASE's.", "KEY"),
    Option("forces_key", str | None, None, "As well for forces.", "KEY"),
    Option("stress_key", str | None, None, "As well for stresses.", "KEY"),
)


def _evaluate(options: Namespace, terminal: Terminal) -> int:
    processes = launched(options.device)
    terminal = for_process(terminal, processes)
    _check_new(options.output, options.overwrite)
    keys = {name: options[name] for name in ("energy_key", "forces_key", "stress_key")}
    calculator = load_calculator(options, terminal, processes)
    frames = [read_frames(path, name=Path(path).stem, **keys) for path in options.frames]
    shown = terminal.verbosity > 0
    found = [evaluate_calculator(calculator, item, verbose=shown, processes=processes) for item in frames]
    if processes.is_first:
        if options.output:
            content = {"model": options.model, "reference": options.reference, "sets": [_plain(item) for item in found]}
            write_text(Path(options.output), to_json(content, "the errors") + "\n")
        terminal.result(evaluation_table(found))
    return 0


def _plain(item: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON has it: energies in meV/atom, forces in meV/Å, stress in kbar."""
    aligned = None if math.isnan(item.aligned_energy_mae) else item.aligned_energy_mae
    return {"name": item.name, "frames": item.frames, **item.raw.to_dict(), "aligned_energy_mae": aligned}


def _check_new(path: str | None, overwrite: bool) -> None:
    if path is not None and is_there(Path(path)) and not overwrite:
        raise OutputExistsError(f"{path} exists; choose another name or give --overwrite")


EVALUATE = Verb(
    description="Errors of a model on labelled frames: energies as they are and after the best per-element offsets "
    "(aligned), forces, stress, and the softening slope (1 is right, below 1 the model is too soft). Under "
    "torchrun or srun several processes share the work.",
    examples=(
        ("test set and old material side by side", "evaluate runs/mine/model test.extxyz mptrj.extxyz"),
        ("for a script", "evaluate 7net-0 test.extxyz --output errors.json --quiet"),
        ("labels under other names", "evaluate 7net-0 data.extxyz --energy_key E_dft --forces_key F_dft"),
    ),
    groups=(Group("frames", _FRAMES), model_group(REFERENCE)),
    run=_evaluate,
)


_CHECKS = tuple(name.replace(" ", "-") for name in CHECKS)
_CHECKED = (
    MODEL,
    Option(
        "against",
        str | None,
        None,
        "Another model, such as the one this one was made of, side by side.",
        "MODEL",
        models=True,
    ),
    Option(
        "structures",
        list[str] | None,
        None,
        "Files of crystals, best those that you know; null takes some elements that the model was fine-tuned on.",
        "FILE",
    ),
    Option(
        "checks",
        list[str] | None,
        None,
        f"Those to make, out of {', '.join(_CHECKS)}; null is all of them.",
        "NAME",
        choices=_CHECKS,
    ),
    Option("output", str | None, None, "New file for the results as JSON.", "FILE"),
    OVERWRITE,
)


def _validate(options: Namespace, terminal: Terminal) -> int:
    _check_new(options.output, options.overwrite)
    structures = None
    if options.structures is not None:
        structures = read_structures(options.structures)
    calculator = load_calculator(options, terminal)
    other = None
    if options.against is not None:
        other = _other(options, terminal)
    found = validate(calculator, structures, against=other, checks=_names(options.checks), progress=terminal.progress)
    if options.output:
        write_text(Path(options.output), to_json(found.to_dict(), "the validation") + "\n")
    terminal.result(str(found))
    return 0 if found.passed else 3


def _names(checks: list[str] | None) -> list[str] | None:
    """Names of checks hold spaces, for which words on a command line have dashes."""
    return None if checks is None else [name.replace("-", " ").replace("_", " ") for name in checks]


def _other(options: Namespace, terminal: Terminal) -> FinetunedCalculator:
    values = options.clone()
    values.model = options.against
    return load_calculator(values, terminal)


VALIDATE = Verb(
    description="Physical checks of a model: what no test set of forces tells. The exit code is 3 if one did not pass.",
    examples=(
        ("all checks on a few crystals", "validate runs/mine/model"),
        ("two of them", "validate runs/mine/model --checks phonons elastic-constants --structures POSCAR"),
        ("before and after, on your own", "validate runs/mine/model --against 7net-0 --structures POSCAR"),
    ),
    groups=(Group("checks", _CHECKED), model_group(dtype="float64")),
    run=_validate,
)


_RUNS = (
    Option(
        "runs",
        list[str] | None,
        None,
        "Output folders of fit; several are compared.",
        "RUN",
        needed=True,
        position=True,
    ),
    Option("frames", list[str] | None, None, "More files of labelled frames to judge one run on.", "FILE"),
    Option(
        "output",
        str | None,
        None,
        "Folder for the page and its pictures; null is that of the run. Of several runs also a new .html file.",
        "FOLDER",
    ),
    Option(
        "names", list[str] | None, None, "What to call several runs, in their order; null takes their folders.", "NAME"
    ),
    DEVICE,
    TRUST,
)


def _report(options: Namespace, terminal: Terminal) -> int:
    if len(options.runs) > 1:
        return _compare(options, terminal)
    if options.names is not None:
        raise InputError("--names are for several runs in comparison")
    (run,) = options.runs
    with terminal.working(f"reading {run}"):
        path = report_run(
            run,
            frames=tuple(options.frames or ()),
            output=options.output,
            device=options.device,
            trust_pickle=options.trust_pickle,
            verbose=terminal.verbosity > 0,
        )
    terminal.result(f"written to {path}")
    return 0


def _compare(options: Namespace, terminal: Terminal) -> int:
    if options.output is None:
        raise InputError("several runs are compared on a page of their own: give --output comparison.html")
    if options.frames:
        raise InputError("--frames are for the report of one run")
    with terminal.working(f"comparing {len(options.runs)} runs"):
        path = compare_runs(options.runs, options.output, names=options.names)
    terminal.result(f"written to {path}")
    return 0


REPORT = Verb(
    description="A page (HTML, one file, no network) about a run: learning, errors before and after, what was "
    "forgotten and where; of several runs, what each gained and forgot in one picture.",
    examples=(
        ("one run, judged on frames it has not seen as well", "report runs/mine --frames test.extxyz"),
        ("methods in comparison", "report runs/naive runs/ewc runs/reewc --output comparison.html"),
    ),
    groups=(Group("report", _RUNS),),
    run=_report,
)
