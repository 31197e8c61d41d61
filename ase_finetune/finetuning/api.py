"""finetune(): from labelled frames to a calculator."""

from __future__ import annotations

import os
import platform
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ase_finetune.calculator import FinetunedCalculator, Model
from ase_finetune.data import PairSource
from ase_finetune.errors import InputError, TrainingError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.context import Context
from ase_finetune.finetuning.history import History, Log, comparison_table, header_line
from ase_finetune.finetuning.keeping import RunKeeper
from ase_finetune.finetuning.loading import load_own
from ase_finetune.finetuning.members import fit_members
from ase_finetune.finetuning.optimizing import unfreeze_parameters
from ase_finetune.finetuning.prepared import Prepared
from ase_finetune.finetuning.preparing import Frames
from ase_finetune.finetuning.recording import Weights, record_drift, record_frames, record_pairs
from ase_finetune.finetuning.relaxation_task import RelaxationTask
from ase_finetune.finetuning.replay_sources import ReplaySources
from ase_finetune.finetuning.rounds import load_rounds
from ase_finetune.finetuning.stages import Sources, Stages, prepare
from ase_finetune.finetuning.training import Trainer
from ase_finetune.finetuning.watchers import build_watchers
from ase_finetune.parallel import Processes, launched
from ase_finetune.potentials import Potential
from ase_finetune.potentials.devices import machine
from ase_finetune.potentials.formats import CONFIG_FILE
from ase_finetune.potentials.storage import potential_hash
from ase_finetune.reporting import RunRecord
from ase_finetune.version import __version__


def finetune(
    model: Model,
    train: Frames | None = None,
    valid: Frames | float | None = 0.1,
    *,
    relaxations: PairSource | None = None,
    valid_relaxations: PairSource | float | None = 0.1,
    replay: ReplaySources | None = "embedded",
    original: Model | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    head: str | None = None,
    members: int = 1,
    verbose: bool | int = True,
    config: FinetuneConfig | None = None,
    **options: Any,
) -> FinetunedCalculator:
    """Fine-tune a pretrained potential on labelled frames, or through relaxations, without forgetting the rest.

    Parameters
    ----------
    model
        A name (``"7net-0"``), a saved folder, the output folder of a finished run, a checkpoint, or a
        :class:`Potential`. It is not changed: training works on a copy. The model of an earlier run is trained
        further; what must not be forgotten stays what the pretrained model behind it knew.
    train
        Frames with energies (eV), forces (eV/Å) and, if there are any, stresses (eV/Å³): a path that ASE
        reads, or a list of ``Atoms``.
    valid
        Fraction of ``train`` to hold out (frames of one trajectory stay together), or frames, or ``None``.
    relaxations
        Pairs of initial and relaxed structures to train through relaxations with (``method="bptt"`` and its
        combinations): two files in the same order or with ids, or a list of ``(initial, relaxed)`` tuples. With
        ``train`` as well, frames come first, as in the BPTT paper.
    valid_relaxations
        Fraction of ``relaxations`` to hold out (pairs of one formula stay together), or pairs, or ``None``.
    replay
        Structures that stand for what must not be forgotten: ``"embedded"`` (a few hundred from MPtrj,
        labelled by the pretrained model), a path, a list of ``Atoms``, or ``None``. Or a list of such sources:
        ``["embedded", "earlier.extxyz"]``. Then frames with labels keep them, in the energy reference of the target
        or of the pretrained model, whichever is nearer; those without labels watch forgetting.
    original
        The pretrained model behind a ``model`` that was fine-tuned before, where that does not know its file: it must
        not be forgotten, and makes the labels of replay structures.
    output
        Folder for the result: the best model, ``report.html`` with its pictures, ``history.csv``, ``run.json``,
        ``log.txt``, and the checkpoints. A run with a folder that is asked to stop while it trains (SIGINT, SIGTERM,
        SIGUSR1, ...) writes one first.
    resume
        Go on with the run in ``output`` from its last checkpoint, as if it had not been interrupted, or start it if
        there is none. Data and options have to be those it was started with.
    head
        Head or modality of models that have several.
    members
        With more than 1, an ensemble of so many models with seeds that follow ``seed``: each holds out other frames
        (where ``valid`` is a fraction), and all share one fit of the reference energies. Each has a folder
        ``output/member-0`` and so on.
    verbose
        ``True`` or 1 prints what is done, and progress bars on a terminal; in a notebook a picture of the epochs so
        far is kept up to date. 2 prints details and times too, ``False`` or 0 nothing.
    config
        All other options at once; see :class:`FinetuneConfig`. Single ones as keywords otherwise.
    **options
        Fields of :class:`FinetuneConfig`.

    Returns
    -------
    A calculator over the weights that were kept (an ensemble with ``members``), with ``.history`` (one dictionary per
    epoch) and ``.metadata`` (base model and hash, data digests, isolated atoms, config, versions, errors, what was kept
    and why, reference offsets).

    Raises
    ------
    InputError, DataError
        If an argument or the data cannot be used; the message names the culprit.
    ModelNotAvailableError
        If the pretrained model behind a fine-tuned one cannot be loaded.
    OutputExistsError
        If ``output`` holds something already, or another process is writing into it.
    OutputError
        If a file cannot be written, for example because the disk is full; the earlier ones are intact.
    CheckpointError
        If no checkpoint of the run to resume is readable.
    RunStoppedError
        If a signal asked the run to stop; it can be resumed.
    TrainingError
        If losses or gradients are not finite in several steps in a row.
    ProcessError
        If another process of the same run stopped.

    Warns
    -----
    UserWarning
        If a member of an ensemble came back unchanged.

    References
    ----------
    reEWC: Kim et al., npj Comput. Mater. 12, 26 (2026). BPTT: Dramko et al., arXiv 2512.01067.
    """
    if config is not None and options:
        raise InputError(f"give either config or single options, not both (got {', '.join(options)})")
    config = config or FinetuneConfig.from_options(options)
    _check_sources(train, relaxations, config)
    if resume and output is None:
        raise InputError("resume=True goes on with the run in an output folder: give output=folder")
    sources = Sources(train, valid, relaxations, valid_relaxations, replay)

    def fit(config: FinetuneConfig, folder: Path | None) -> FinetunedCalculator:
        processes = launched(config.device)
        log = Log(verbose if processes.is_first else 0)
        with ExitStack() as open_:
            keeper = None if folder is None else open_.enter_context(RunKeeper(folder, resume, log, config, processes))
            prepared = None if keeper is None else keeper.prepared()
            run = _context(model, original, head, config, log, processes, prepared)
            open_.push(log.end)
            log.watchers += processes.on_first(lambda: build_watchers(config, folder, log)) or []
            return _run(run, sources, keeper)

    if members != 1:
        return fit_members(members, fit, config, output)
    return fit(config, None if output is None else Path(output))


def _run(run: Context, sources: Sources, keeper: RunKeeper | None) -> FinetunedCalculator:
    """Prepare the stages, train them one after the other, and conclude."""
    metadata, potential = run.metadata, run.potential
    stages = prepare(run, sources)
    weights = Weights(potential, run.original)
    metadata["stages"] = []
    state = None if keeper is None else keeper.begin(run)
    rows = History()
    for number, task in enumerate(stages.tasks):
        done = len(metadata["stages"])
        if number < done:
            continue
        if len(stages.tasks) > 1 and state is None:
            run.log(f"stage: {task.name}")
        trainer = Trainer(potential, task, stages.replay, run.config, stages.penalty, run.log, run.processes)
        trainer.rows, trainer.keeper = rows, keeper
        if state is not None:
            trainer.load(state)
            progress = trainer.progress
            run.log.skip(len(rows) + number + 1)
            if progress.epoch > task.epochs:
                run.log("resumed after the last epoch")
            else:
                run.log(f"resumed in epoch {progress.epoch} after {progress.steps} of its steps")
                run.log(header_line(trainer.columns))
            state = None
        _fit(trainer, keeper)
        metadata["stages"].append({"stage": task.name, **_conclude(trainer, run.log)})
    metadata["errors"] = metadata["stages"][-1]
    metadata["unchanged"] = all(stage["kept"]["unchanged"] for stage in metadata["stages"])
    metadata["outcome"] = metadata["rounds"][-1]["kept"] = _outcome(metadata)
    stages.labelled.conclude()
    if keeper is not None:
        keeper.write_result(potential, rows)
        if run.config.report:
            _report(keeper, run, stages, weights, rows)
        keeper.write_log(metadata["outcome"])
    else:
        run.log(metadata["outcome"])
    unfreeze_parameters(potential, metadata["frozen"])
    calculator = FinetunedCalculator(potential, device=str(potential.device), dtype=run.config.dtype)
    calculator.history, calculator.metadata = rows, metadata
    if keeper is not None:
        calculator.parameters["model"] = str(keeper.best_model)
    return calculator


def _report(keeper: RunKeeper, run: Context, stages: Stages, weights: Weights, history: list[dict[str, Any]]) -> None:
    """Write the report. What goes wrong with it is logged, and does not cost what was trained."""
    try:
        keeper.write_report(_record(run, stages, weights, history))
    except Exception as error:  # noqa: BLE001
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        run.log(f"note: there is no report ({reason}); the model is in {keeper.best_model}, a resumed run tries again")


def _record(run: Context, stages: Stages, weights: Weights, history: list[dict[str, Any]]) -> RunRecord:
    """What the run is judged by. All processes take part."""
    with run.log.timed("evaluation for the report"):
        (*_, last) = stages.tasks
        return RunRecord(
            run.metadata,
            history,
            run.log.lines,
            record_frames(run, stages.judged, weights),
            record_drift(run.potential, weights, stages.fisher),
            record_pairs(run, last, weights) if isinstance(last, RelaxationTask) else None,
        )


def _context(
    model: Model,
    original: Model | None,
    head: str | None,
    config: FinetuneConfig,
    log: Log,
    processes: Processes,
    prepared: Prepared | None,
) -> Context:
    potential, base = load_own(model, head, config, processes)
    rounds = load_rounds(model, base, potential, original, config, processes)
    metadata = _describe_base(model, potential, base, config) | {"processes": processes.size}
    metadata["machine"] = machine(potential.device)
    size = sum(parameter.numel() for _, parameter in potential.native_parameters())
    where = ", ".join(f"{key} {value}" for key, value in metadata["machine"].items())
    log.detail(f"{metadata['base_model']}: {potential.backend}, {size:,d} parameters, {config.dtype}; {where}")
    return Context(potential, config, log, metadata, processes, prepared or Prepared(), rounds)


def _check_sources(train: Any, relaxations: Any, config: FinetuneConfig) -> None:
    """What is given must be what the method trains on."""
    if config.uses_relaxations and relaxations is None:
        raise InputError(f"method={config.method!r} trains through relaxations: give relaxations=pairs")
    if not config.uses_relaxations and relaxations is not None:
        other = "bptt" if config.method == "naive" else f"bptt+{config.method}"
        raise InputError(f"relaxations= are given, but method={config.method!r} does not use them; use {other!r}")
    if train is None and relaxations is None:
        raise InputError("there is nothing to train on: give train=frames, or relaxations=pairs with method='bptt'")


def _fit(trainer: Trainer, keeper: RunKeeper | None) -> None:
    try:
        trainer.fit()
    except TrainingError as error:
        best = None if keeper is None else keeper.best_model
        kept = "" if best is None or not (best / CONFIG_FILE).is_file() else f"; the best model so far is in {best}"
        raise TrainingError(f"{error}{kept}") from error


def _conclude(trainer: Trainer, log: Log) -> dict[str, Any]:
    """Errors before and after on every set, logged as a table; what was kept and why."""
    kept = trainer.kept()
    trainer.rows[-1]["outcome"] = kept.label()
    before = {name: errors for name, errors in trainer.initial.items() if errors is not None}
    # Those of the training examples are averages over an epoch of moving weights: no error of the result.
    after = {name: errors for name, errors in trainer.best.errors.items() if errors is not None and name != "train"}
    log(comparison_table({name: before[name] for name in after}, after))
    return {
        "best_epoch": trainer.best.epoch,
        "kept": kept.to_dict(),
        "before": {name: errors.to_dict() for name, errors in before.items()},
        "after": {name: errors.to_dict() for name, errors in after.items()},
    }


def _outcome(metadata: dict[str, Any]) -> str:
    """The closing line of a run: what each stage kept, and why; "unchanged" if the result is the model as it was."""
    kept = [stage["kept"] for stage in metadata["stages"]]
    if len(kept) == 1 or metadata["unchanged"]:
        (*_, last) = kept
        return f"{'' if last['unchanged'] else 'kept: '}{last['sentence']}"
    return "; ".join(f"{stage['stage']}: {stage['kept']['sentence']}" for stage in metadata["stages"])


def _describe_base(model: Model, potential: Potential, base: dict[str, Any], config: FinetuneConfig) -> dict[str, Any]:
    name = f"a {model.backend} potential" if isinstance(model, Potential) else str(model)
    packages = {}
    for package in ("ase", "torch", "numpy", "sevenn", "mace-torch", "e3nn"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "base_model": name,
        "base_hash": potential_hash(potential),
        "base_metadata": base,
        "head": potential.head,
        "config": config.to_dict(),
        "versions": {"ase_finetune": __version__, "python": platform.python_version(), **packages},
    }
