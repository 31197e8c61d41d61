"""finetune(): from labelled frames to a calculator."""

from __future__ import annotations

import copy
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ase_finetune.calculator import FinetunedCalculator, Model
from ase_finetune.data import PairSource
from ase_finetune.errors import InputError, TrainingError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.history import Log, comparison_table
from ase_finetune.finetuning.optimizing import unfreeze_parameters
from ase_finetune.finetuning.preparing import Frames
from ase_finetune.finetuning.run_folder import RunFolder
from ase_finetune.finetuning.stages import Sources, prepare
from ase_finetune.finetuning.training import Trainer
from ase_finetune.parallel import Processes, launched
from ase_finetune.potentials import Potential, load_potential
from ase_finetune.potentials.devices import resolve_device, resolve_dtype
from ase_finetune.potentials.storage import potential_hash
from ase_finetune.version import __version__


def finetune(
    model: Model,
    train: Frames | None = None,
    valid: Frames | float | None = 0.1,
    *,
    relaxations: PairSource | None = None,
    valid_relaxations: PairSource | float | None = 0.1,
    replay: Frames | None = "embedded",
    output: str | os.PathLike[str] | None = None,
    head: str | None = None,
    verbose: bool = True,
    config: FinetuneConfig | None = None,
    **options: Any,
) -> FinetunedCalculator:
    """Fine-tune a pretrained potential on labelled frames, or through relaxations, without forgetting the rest.

    Parameters
    ----------
    model
        A name (``"7net-0"``), a saved folder, a checkpoint, or a :class:`Potential`. It is not changed:
        training works on a copy.
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
        labelled by the pretrained model), a path, a list of ``Atoms``, or ``None``.
    output
        Folder for the result: the best model, ``history.csv``, ``run.json`` and ``log.txt``.
    head
        Head or modality of models that have several.
    verbose
        Print what is done, and progress bars on a terminal.
    config
        All other options at once; see :class:`FinetuneConfig`. Single ones as keywords otherwise.
    **options
        Fields of :class:`FinetuneConfig`.

    Returns
    -------
    A calculator over the best weights, with ``.history`` (one dictionary per epoch) and ``.metadata`` (base
    model and hash, data digests, config, versions, errors, reference offsets).

    Raises
    ------
    InputError, DataError
        If an argument or the data cannot be used; the message names the culprit.
    OutputExistsError
        If ``output`` holds something already.
    TrainingError
        If the loss is no longer finite.
    ProcessError
        If another process of the same run stopped.

    References
    ----------
    reEWC: Kim et al., npj Comput. Mater. 12, 26 (2026). BPTT: Dramko et al., arXiv 2512.01067.
    """
    if config is not None and options:
        raise InputError(f"give either config or single options, not both (got {', '.join(options)})")
    config = config or FinetuneConfig.from_options(options)
    _check_sources(train, relaxations, config)
    processes = launched(config.device)
    folder = processes.on_first(lambda: None if output is None else RunFolder(Path(output)))
    log = Log(verbose and processes.is_first)
    potential, base = _load(model, head, config, processes)
    metadata = _describe_base(model, potential, base, config) | {"processes": processes.size}
    sources = Sources(train, valid, relaxations, valid_relaxations, replay)
    run = prepare(potential, sources, config, log, metadata, processes)
    processes.on_first(lambda: None if folder is None else folder.write_metadata(metadata))
    rows: list[dict[str, Any]] = []
    for task in run.tasks:
        if len(run.tasks) > 1:
            log(f"stage: {task.name}")
        trainer = Trainer(potential, task, run.replay, config, run.penalty, log, processes)
        trainer.rows = rows
        _fit(trainer, folder, metadata, log, processes)
        metadata.setdefault("stages", []).append({"stage": task.name, **_conclude(trainer, log)})
    metadata["errors"] = metadata["stages"][-1]
    unfreeze_parameters(potential, metadata["frozen"])
    calculator = FinetunedCalculator(potential, device=str(potential.device), dtype=config.dtype)
    calculator.history, calculator.metadata = rows, metadata
    if output is not None:
        calculator.parameters["model"] = str(Path(output) / "model")
        log(f"written to {output}: model, history.csv, run.json, log.txt")
    # The others wait here: what they do next may need the files.
    processes.on_first(lambda: None if folder is None else folder.write_result(potential, metadata, log))
    return calculator


def _check_sources(train: Any, relaxations: Any, config: FinetuneConfig) -> None:
    """What is given must be what the method trains on."""
    if config.uses_relaxations and relaxations is None:
        raise InputError(f"method={config.method!r} trains through relaxations: give relaxations=pairs")
    if not config.uses_relaxations and relaxations is not None:
        other = "bptt" if config.method == "naive" else f"bptt+{config.method}"
        raise InputError(f"relaxations= are given, but method={config.method!r} does not use them; use {other!r}")
    if train is None and relaxations is None:
        raise InputError("there is nothing to train on: give train=frames, or relaxations=pairs with method='bptt'")


def _fit(trainer: Trainer, folder: RunFolder | None, metadata: dict[str, Any], log: Log, processes: Processes) -> None:
    def write(trainer: Trainer) -> None:
        processes.on_first(lambda: None if folder is None else folder.write_epoch(trainer, metadata, log))

    trainer.on_epoch = write
    try:
        trainer.fit()
    except TrainingError as error:
        kept = "" if folder is None or not folder.model.exists() else f"; the best model so far is in {folder.model}"
        raise TrainingError(f"{error}{kept}") from error


def _conclude(trainer: Trainer, log: Log) -> dict[str, Any]:
    """Errors before and after on every set, told as a table."""
    if trainer.best_epoch == 0:
        log("no epoch was better than the model it started from, whose weights are kept")
    log(f"best epoch: {trainer.best_epoch}")
    before = {name: errors for name, errors in trainer.initial.items() if errors is not None}
    # Those of the training examples are averages over an epoch of moving weights: no error of the result.
    after = {name: errors for name, errors in trainer.best_errors.items() if errors is not None and name != "train"}
    log(comparison_table({name: before[name] for name in after}, after))
    return {
        "best_epoch": trainer.best_epoch,
        "before": {name: errors.to_dict() for name, errors in before.items()},
        "after": {name: errors.to_dict() for name, errors in after.items()},
    }


def _load(
    model: Model, head: str | None, config: FinetuneConfig, processes: Processes
) -> tuple[Potential, dict[str, Any]]:
    device, dtype = processes.device or resolve_device(config.device), resolve_dtype(config.dtype)
    potential, base = load_potential(model, head=head, device=device, dtype=dtype, trust_pickle=config.trust_pickle)
    if potential is model:
        potential = copy.deepcopy(potential).to(device=device, dtype=dtype)
    return potential, base


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
