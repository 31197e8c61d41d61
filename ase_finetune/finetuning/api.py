"""finetune(): from labelled frames to a calculator."""

from __future__ import annotations

import copy
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ase_finetune.calculator import FinetunedCalculator, Model
from ase_finetune.data import data_report
from ase_finetune.errors import InputError, OutputExistsError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.history import Log, comparison_table, write_csv
from ase_finetune.finetuning.optimizing import freeze_parameters, parameter_table
from ase_finetune.finetuning.preparing import (
    Frames,
    build_penalty,
    check_and_align,
    labelled_graphs,
    read_target,
    replay_graphs,
    shift_labels,
)
from ase_finetune.finetuning.training import Sets, Trainer
from ase_finetune.metrics import Errors, evaluate
from ase_finetune.potentials import load_potential
from ase_finetune.potentials.devices import resolve_device, resolve_dtype
from ase_finetune.potentials.storage import potential_hash
from ase_finetune.version import __version__


def finetune(
    model: Model,
    train: Frames,
    valid: Frames | float | None = 0.1,
    *,
    replay: Frames | None = "embedded",
    output: str | os.PathLike[str] | None = None,
    head: str | None = None,
    verbose: bool = True,
    config: FinetuneConfig | None = None,
    **options: Any,
) -> FinetunedCalculator:
    """Fine-tune a pretrained potential on labelled frames without forgetting the rest.

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

    References
    ----------
    reEWC: Kim et al., npj Comput. Mater. 12, 26 (2026).
    """
    if config is not None and options:
        raise InputError(f"give either config or single options, not both (got {', '.join(options)})")
    config = config or FinetuneConfig.from_options(options)
    folder = None if output is None else claim_output(Path(output))
    log = Log(verbose)
    potential, base = _load(model, head, config)
    metadata = _describe_base(model, potential, base, config)
    trainer, results = _train(potential, (train, valid, replay), config, log, metadata)
    metadata["errors"] = results
    calculator = FinetunedCalculator(potential, device=str(potential.device), dtype=config.dtype)
    calculator.history, calculator.metadata = trainer.rows, metadata
    if folder is not None:
        _write(folder, calculator)
        calculator.parameters["model"] = str(folder / "model")
        log(f"written to {folder}: model, history.csv, run.json, log.txt")
        (folder / "log.txt").write_text("\n".join(log.lines) + "\n", encoding="utf-8")
    return calculator


def _train(
    potential: Any, sources: tuple[Frames, Any, Any], config: FinetuneConfig, log: Log, metadata: dict[str, Any]
) -> tuple[Trainer, dict[str, Any]]:
    train, valid, how = read_target(sources[0], sources[1], config)
    named = {"train": train} | ({} if valid is None else {"valid": valid})
    replay, monitor, replay_digest = replay_graphs(potential, sources[2], config, log)
    replay_elements = {int(z) for graph in replay for z in graph.numbers} or None
    log(data_report(named, replay_elements))
    log(f"split: {how}")
    train, valid, offsets = check_and_align(potential, train, valid, config, log)
    if offsets is not None and config.reference == "shift":
        replay, monitor = shift_labels(replay, offsets), shift_labels(monitor, offsets)
    frozen = freeze_parameters(potential, config.freeze)
    log(parameter_table(potential))
    penalty = fisher = None
    if config.uses_ewc:
        penalty, fisher = build_penalty(potential, replay, config, log, metadata["base_hash"])
    metadata |= {
        "data": {name: frames.digest() for name, frames in named.items()} | {"replay": replay_digest},
        "split": how,
        "frozen": frozen,
        "fisher": None if fisher is None else fisher.metadata,
    }
    if offsets is not None:
        # Of the labels to the model, which the calculator can add back, or of the model, which has them now.
        name = "reference_offsets" if config.reference == "align" else "shifted_by"
        metadata[name] = offsets.to_dict()["offsets"]
    sets = Sets(
        labelled_graphs(potential, train),
        [] if valid is None else labelled_graphs(potential, valid),
        replay if config.uses_replay else [],
        monitor,
    )
    trainer = Trainer(potential, sets, config, penalty, log)
    trainer.fit()
    return trainer, _conclude(trainer, log)


def _conclude(trainer: Trainer, log: Log) -> dict[str, Any]:
    """Errors before and after on every set, told as a table."""
    before = {name: errors for name, errors in trainer.initial.items() if errors is not None}
    if trainer.best_epoch == 0:
        log("no epoch was better than the pretrained model, whose weights are kept")
    log(f"best epoch: {trainer.best_epoch}")
    sets = {"valid": trainer.sets.valid, "replay": trainer.sets.monitor}
    after: dict[str, Errors] = {}
    for name in before:
        errors = evaluate(trainer.potential, sets[name], trainer.config.loss)
        assert errors is not None
        after[name] = errors
    if before:
        log(comparison_table(before, after))
    return {
        "best_epoch": trainer.best_epoch,
        "before": {name: errors.to_dict() for name, errors in before.items()},
        "after": {name: errors.to_dict() for name, errors in after.items()},
    }


def claim_output(folder: Path) -> Path:
    """Make the output folder, or refuse one that holds something.

    Raises
    ------
    OutputExistsError
        If the folder exists and is not empty, or is a file.
    InputError
        If it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} exists and is not empty; choose another output folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be written: {error.strerror}") from error
    return folder


def _load(model: Model, head: str | None, config: FinetuneConfig) -> tuple[Any, dict[str, Any]]:
    device, dtype = resolve_device(config.device), resolve_dtype(config.dtype)
    potential, base = load_potential(model, head=head, device=device, dtype=dtype, trust_pickle=config.trust_pickle)
    if potential is model:
        potential = copy.deepcopy(potential).to(device=device, dtype=dtype)
    return potential, base


def _describe_base(model: Model, potential: Any, base: dict[str, Any], config: FinetuneConfig) -> dict[str, Any]:
    name = (
        f"a {potential.backend} potential" if potential.__class__.__module__ == type(model).__module__ else str(model)
    )
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


def _write(folder: Path, calculator: FinetunedCalculator) -> None:
    calculator.save(folder / "model")
    write_csv(calculator.history, folder / "history.csv")
    (folder / "run.json").write_text(json.dumps(calculator.metadata, indent=1), encoding="utf-8")
