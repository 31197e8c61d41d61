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
from ase_finetune.cli.options import Group, Option, nearest
from ase_finetune.cli.places import check_file, check_folder
from ase_finetune.cli.structures import read_structures
from ase_finetune.cli.terminal import Terminal
from ase_finetune.cli.verbs import NOT_ALL_WELL, Verb
from ase_finetune.data import read_frames
from ase_finetune.errors import InputError
from ase_finetune.files import is_there, to_json, write_text
from ase_finetune.parallel import launched
from ase_finetune.reporting import RECORD_FILE

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
    inputs = (options.model, *options.frames)
    processes.on_first(lambda: check_file(options.output, overwrite=options.overwrite, inputs=inputs))
    keys = {name: options[name] for name in ("energy_key", "forces_key", "stress_key")}
    calculator = load_calculator(options, terminal, processes)
    frames = [read_frames(path, name=Path(path).stem, **keys) for path in options.frames]
    shown = terminal.verbosity > 0
    found = [evaluate_calculator(calculator, item, verbose=shown, processes=processes) for item in frames]
    if processes.is_first:
        terminal.result(evaluation_table(found))
        if options.output:
            content = {"model": options.model, "reference": options.reference, "sets": [_plain(item) for item in found]}
            write_text(Path(options.output), to_json(content, "the errors") + "\n")
    return 0


def _plain(item: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON has it: energies in meV/atom, forces in meV/Å, stress in kbar."""
    aligned = None if math.isnan(item.aligned_energy_mae) else item.aligned_energy_mae
    return {"name": item.name, "frames": item.frames, **item.raw.to_dict(), "aligned_energy_mae": aligned}


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
    inputs = (options.model, options.against, *(options.structures or ()))
    check_file(options.output, overwrite=options.overwrite, inputs=inputs)
    checks = _names(options.checks)
    structures = None
    if options.structures is not None:
        structures = read_structures(options.structures)
    calculator = load_calculator(options, terminal)
    other = None
    if options.against is not None:
        other = _other(options, terminal)
    found = validate(calculator, structures, against=other, checks=checks, progress=terminal.progress)
    terminal.result(str(found))
    if options.output:
        write_text(Path(options.output), to_json(found.to_dict(), "the validation") + "\n")
    # Where nothing could be judged, which its last line says, nothing has passed either.
    return 0 if found.passed and found.verdict != "not judged" else NOT_ALL_WELL


def _names(checks: list[str] | None) -> list[str] | None:
    """Names of checks hold spaces, for which words on a command line have dashes."""
    if checks is None:
        return None
    for name in checks:
        if name.replace(" ", "-").replace("_", "-") not in _CHECKS:
            raise InputError(f"there is no check {name}; there are {', '.join(_CHECKS)}{nearest(name, _CHECKS)}")
    return [name.replace("-", " ").replace("_", " ") for name in checks]


def _other(options: Namespace, terminal: Terminal) -> FinetunedCalculator:
    values = options.clone()
    values.model = options.against
    return load_calculator(values, terminal)


VALIDATE = Verb(
    description="Physical checks of a model: what errors on a test set do not show. The exit code is 3 if one did not "
    "pass, or none could judge anything.",
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


def _check_run(folder: str) -> None:
    """Refuse what is no run that has ended."""
    path = Path(folder)
    if not is_there(path):
        raise InputError(f"there is no folder {folder}")
    if is_there(path / RECORD_FILE):
        return
    if is_there(path / "checkpoints"):
        raise InputError(f"the run in {folder} has not ended; the same fit with --resume goes on with it")
    offered = f"; did you mean {path.parent}?" if is_there(path.parent / RECORD_FILE) else ""
    raise InputError(f"{folder} is not the output folder of a fit{offered}")


def _report(options: Namespace, terminal: Terminal) -> int:
    for run in options.runs:
        _check_run(run)
    check_folder(None if options.output is None else _folder_of_page(options.output))
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


def _folder_of_page(output: str) -> str:
    return str(Path(output).parent) if Path(output).suffix == ".html" and not Path(output).is_dir() else output


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
