"""The stages of a run: what is trained on, in which order, and what must not be forgotten meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ase_finetune.continual import EWCPenalty
from ase_finetune.data import (
    FrameSet,
    PairSet,
    PairSource,
    align,
    check_disjoint_pairs,
    data_report,
    fit_reference,
    pair_report,
    read_pairs,
    split_pairs,
)
from ase_finetune.errors import DataError, InputError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.frame_task import FrameBatches, FrameTask, Replay, edge_budget
from ase_finetune.finetuning.history import Log
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
from ase_finetune.finetuning.relaxation_task import RelaxationTask
from ase_finetune.finetuning.tasks import Task
from ase_finetune.graphs import AtomGraph
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.batched import predict_many


@dataclass(frozen=True)
class Sources:
    """Where frames, pairs and replay structures come from; as the arguments of :func:`finetune`."""

    train: Frames | None
    valid: Frames | float | None
    relaxations: PairSource | None
    valid_relaxations: PairSource | float | None
    replay: Frames | None


@dataclass
class Run:
    """What the stages of a run share, and the stages."""

    replay: Replay
    tasks: list[Task] = field(default_factory=list)
    penalty: EWCPenalty | None = None


@dataclass(frozen=True)
class _Pairs:
    train: PairSet
    valid: PairSet | None
    how: str


def prepare(
    potential: Potential,
    sources: Sources,
    config: FinetuneConfig,
    log: Log,
    metadata: dict[str, Any],
    processes: Processes = ALONE,
) -> Run:
    """Everything before step 1, told and entered into the metadata.

    Raises
    ------
    InputError, DataError
        If data or options cannot be used.
    """
    frames = None if sources.train is None else read_target(sources.train, sources.valid, config)
    pairs = None if sources.relaxations is None else _read_pairs(potential, sources, config)
    trained, watched, replay_digest = replay_graphs(potential, sources.replay, config, log, processes)
    metadata["data"] = {"replay": replay_digest}
    if frames is not None:
        target = _align_frames(potential, frames, trained, config, log, metadata, processes)
        if target.offsets is not None and config.reference == "shift":
            trained, watched = shift_labels(trained, target.offsets), shift_labels(watched, target.offsets)
    if pairs is not None:
        _tell_pairs(pairs, log, metadata)
    metadata["frozen"] = freeze_parameters(potential, config.freeze)
    log(parameter_table(potential))
    run = Run(Replay(watched=watched))
    metadata["fisher"] = None
    if config.uses_ewc:
        run.penalty, fisher = build_penalty(potential, trained, config, log, metadata["base_hash"], processes)
        metadata["fisher"] = fisher.metadata
    train = [] if frames is None else labelled_graphs(potential, target.train)
    used = trained if config.uses_replay else []
    # One bound for all frames: target and replay take turns in the same memory.
    budget = processes.together(lambda: edge_budget(potential, [used, train], config, log))
    if used:
        weight = config.replay_weight
        batches = FrameBatches(potential, used, config.loss, budget, weight=weight, processes=processes)
        run.replay = Replay(batches, watched)
    if frames is not None:
        valid = [] if target.valid is None else labelled_graphs(potential, target.valid)
        workers = config.num_workers
        batches = FrameBatches(potential, train, config.loss, budget, processes=processes, num_workers=workers)
        run.tasks.append(FrameTask(batches, valid, config, target.untouched))
    if pairs is not None:
        energies = _target_energies(potential, pairs.train, log, processes) if config.bptt.loss.energy > 0 else None
        run.tasks.append(RelaxationTask(potential, pairs.train, pairs.valid, config.bptt, log, energies, processes))
    return run


def _align_frames(
    potential: Potential,
    frames: tuple[FrameSet, FrameSet | None, str],
    replay: list[AtomGraph],
    config: FinetuneConfig,
    log: Log,
    metadata: dict[str, Any],
    processes: Processes,
) -> Any:
    """Tell what the frames are, and bring their energies to the model's reference."""
    train, valid, how = frames
    named = {"train": train} | ({} if valid is None else {"valid": valid})
    replay_elements = {int(z) for graph in replay for z in graph.numbers} or None
    log(data_report(named, replay_elements))
    log(f"split: {how}")
    metadata["data"] |= {name: part.digest() for name, part in named.items()}
    metadata["split"] = how
    target = check_and_align(potential, train, valid, config, log, processes)
    if target.offsets is not None:
        # Of the labels to the model, which the calculator can add back, or of the model, which has them now.
        name = "reference_offsets" if config.reference == "align" else "shifted_by"
        metadata[name] = target.offsets.to_dict()["offsets"]
    return target


def _read_pairs(potential: Potential, sources: Sources, config: FinetuneConfig) -> _Pairs:
    """Training and validation pairs of elements that the potential knows."""
    assert sources.relaxations is not None
    pairs = read_pairs(sources.relaxations)
    for position, pair in enumerate(pairs):
        try:
            potential.check_numbers(pair.initial.numbers)
        except InputError as error:
            raise DataError(f"{pairs.describe(position)}: {error}") from error
    valid = sources.valid_relaxations
    if valid is None:
        if config.early_stopping is not None:
            raise InputError("early_stopping needs validation pairs to judge by, but valid_relaxations=None")
        return _Pairs(pairs, None, "no validation pairs: the weights of the last epoch are kept")
    if isinstance(valid, (int, float)):
        return _Pairs(*split_pairs(pairs, valid, seed=config.seed))
    held_out = read_pairs(valid, name="valid relaxations")
    check_disjoint_pairs(pairs, held_out)
    return _Pairs(pairs, held_out, "validation pairs given")


def _tell_pairs(pairs: _Pairs, log: Log, metadata: dict[str, Any]) -> None:
    for part in (pairs.train, pairs.valid):
        if part is not None:
            log(pair_report(part))
    log(f"split of relaxations: {pairs.how}")
    metadata["data"] |= {"relaxations": pairs.train.digest()}
    if pairs.valid is not None:
        metadata["data"] |= {"valid_relaxations": pairs.valid.digest()}
    metadata["split_relaxations"] = pairs.how


def _target_energies(potential: Potential, pairs: PairSet, log: Log, processes: Processes) -> list[float]:
    """Energies of the relaxed structures in the potential's own reference, eV; NaN where there is none."""
    if not pairs.num_energies:
        raise DataError(f"the loss of bptt has an energy weight, but no pair of {pairs.name} has an energy")
    frames = FrameSet.from_atoms(
        [pair.relaxed for pair in pairs], name=pairs.name, energies=[pair.energy for pair in pairs]
    )
    graphs = frames.graphs(potential.cutoff, potential.dtype)
    predictions = predict_many(potential, graphs, forces=False, stress=False, processes=processes)
    predicted = [float(prediction.energy[0]) for prediction in predictions]
    offsets = fit_reference(frames, predicted)
    log(f"energies of relaxed structures: {offsets.describe()}")
    return [math.nan if frame.energy is None else frame.energy for frame in align(frames, offsets)]
