"""The stages of a run: what is trained on, in which order, and what must not be forgotten meanwhile."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase_finetune.continual import EWCPenalty, FisherInformation
from ase_finetune.data import (
    FrameSet,
    PairSet,
    PairSource,
    ReferenceOffsets,
    align,
    check_disjoint_pairs,
    data_report,
    fit_reference,
    isolated_energies,
    pair_report,
    pair_split_notes,
    read_pairs,
    split_pairs,
)
from ase_finetune.errors import DataError, InputError
from ase_finetune.files import file_hash
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.context import Context
from ase_finetune.finetuning.earlier import EarlierFrames, read_earlier
from ase_finetune.finetuning.frame_task import FrameBatches, FrameTask, Replay, edge_budget
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.labelled import Labelled
from ase_finetune.finetuning.old_material import build_forgetting, build_penalty, label_replay, shift_labels
from ase_finetune.finetuning.optimizing import freeze_parameters, parameter_summary, parameter_table
from ase_finetune.finetuning.preparing import (
    Frames,
    Target,
    TargetFrames,
    check_and_align,
    labelled_graphs,
    read_target,
    target_notes,
)
from ase_finetune.finetuning.recording import JudgedSet
from ase_finetune.finetuning.relaxation_task import RelaxationTask
from ase_finetune.finetuning.replay_sources import OldStructures, ReplaySources, read_replay
from ase_finetune.finetuning.rounds import note_round
from ase_finetune.finetuning.tasks import Task
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.batched import predict_many
from ase_finetune.potentials.memory import EdgeBudget
from ase_finetune.potentials.storage import state_hash


@dataclass(frozen=True)
class Sources:
    """Where frames, pairs and replay structures come from; as the arguments of :func:`finetune`."""

    train: Frames | None
    valid: Frames | float | None
    relaxations: PairSource | None
    valid_relaxations: PairSource | float | None
    replay: ReplaySources | None


@dataclass
class Stages:
    """The stages of a run, what they share, and what the run is to be judged by."""

    replay: Replay
    labelled: Labelled
    tasks: list[Task] = field(default_factory=list)
    penalty: EWCPenalty | None = None
    fisher: FisherInformation | None = None
    judged: list[JudgedSet] = field(default_factory=list)


@dataclass(frozen=True)
class _Pairs:
    train: PairSet
    valid: PairSet | None
    how: str


def prepare(run: Context, sources: Sources) -> Stages:
    """Everything before step 1, logged and entered into the metadata.

    Raises
    ------
    InputError, DataError
        If data or options cannot be used, or are not those that a resumed run was started with.
    """
    potential, config, metadata = run.potential, run.config, run.metadata
    frames = None if sources.train is None else read_target(sources.train, sources.valid, config, potential.cutoff)
    pairs = None if sources.relaxations is None else _read_pairs(potential, sources, config)
    old = read_replay(potential, sources.replay, config, run.log)
    earlier = read_earlier(run, old, () if frames is None else frames[:2])
    _describe_data(metadata, frames, pairs, old, earlier)
    run.prepared.check_identity(_identity(run))
    trained, watched = label_replay(run, old)
    if frames is not None:
        target = _align_frames(run, frames, trained, earlier)
        trained, watched = (_in_reference(graphs, target, config) for graphs in (trained, watched))
    labelled = earlier.labelled(run, _kept_offsets(run) if frames is None else target.offsets)
    metadata["rounds"] = [*run.rounds.earlier, _note(run, sources, frames, None if frames is None else target.train)]
    if pairs is not None:
        _tell_pairs(pairs, run.log)
    metadata["frozen"] = freeze_parameters(potential, config.freeze)
    freeze_parameters(run.original, config.freeze)  # whose Fisher information is that of what is trained
    run.log(parameter_summary(potential))
    run.log.detail(parameter_table(potential))
    stages = Stages(Replay(), labelled)
    metadata["fisher"] = None
    if config.uses_ewc:
        stages.penalty, stages.fisher = build_penalty(run, trained)
        metadata["fisher"] = stages.fisher.metadata
    forgetting = build_forgetting(run, watched, stages.penalty)
    stages.replay = Replay(watched=watched, forgetting=forgetting)
    train = [] if frames is None else labelled_graphs(potential, target.train)
    used = [*trained, *labelled.replayed(len(trained))] if config.uses_replay else []
    budget = _edge_budget(run, used, train)
    shared: dict[str, Any] = {"processes": run.processes}
    if used and old is not None:
        describe = _described(old, labelled, len(trained))
        shared_replay = shared | {"weight": config.replay_weight, "describe": describe}
        stages.replay = Replay(FrameBatches(potential, used, config.loss, budget, **shared_replay), watched, forgetting)
    if frames is not None:
        valid = [] if target.valid is None else labelled_graphs(potential, target.valid)
        held_out = target.valid or target.train
        stages.judged.append(JudgedSet(held_out.name, valid or train, held_out.describe))
        shared |= {"num_workers": config.num_workers, "describe": target.train.describe}
        batches = FrameBatches(potential, train, config.loss, budget, **shared)
        stages.tasks.append(FrameTask(batches, valid, config, target.untouched, run.log))
    if pairs is not None:
        energies = _target_energies(run, pairs.train) if config.bptt.loss.energy > 0 else None
        stages.tasks.append(
            RelaxationTask(potential, pairs.train, pairs.valid, config.bptt, run.log, energies, run.processes)
        )
    stages.judged += labelled.judged()
    if old is not None:
        watched_frames = old.frames.select(range(old.trained, len(old.frames)))
        stages.judged.append(JudgedSet("replay", watched, watched_frames.describe, not old.has_labels, True))
    return stages


def _in_reference(graphs: list[AtomGraph], target: Target, config: FinetuneConfig) -> list[AtomGraph]:
    """Replay structures with labels in the reference of the model, which may have been moved to the target's."""
    if target.offsets is None or config.reference != "shift":
        return graphs
    return shift_labels(graphs, target.offsets)


def _kept_offsets(run: Context) -> ReferenceOffsets | None:
    """Offsets of earlier rounds, where no frames of this one have energies to fit new ones to."""
    if not run.rounds.offsets:
        return None
    offsets = ReferenceOffsets(run.rounds.offsets, len(run.rounds.offsets))
    run.metadata["reference_offsets"] = offsets.to_dict()["offsets"]
    return offsets


def _note(run: Context, sources: Sources, frames: TargetFrames | None, used: FrameSet | None) -> dict[str, Any]:
    """What a later round has to know about this one."""
    train = None if frames is None or used is None else (sources.train, frames.train, used)
    valid = None if frames is None or frames.valid is None else (sources.valid, frames.valid)
    return note_round(run.rounds, run.metadata, run.config, train, valid)


def _described(old: OldStructures, labelled: Labelled, count: int) -> Callable[[int], str]:
    """How messages name a structure that is replayed: the first ``count`` are old ones, then come labelled frames."""
    return lambda index: old.describe(index) if index < count else labelled.describe(index - count)


#: Options that say how a run is carried out, not what comes out of it.
_MAY_CHANGE = ("device", "num_workers", "checkpoint_minutes", "trust_pickle", "report", "loggers")


def _identity(run: Context) -> dict[str, Any]:
    """What must be the same when a run is resumed."""
    potential, config, metadata = run.potential, run.config, run.metadata
    files = {name: getattr(config, name) for name in ("fisher", "fisher_anchor")}
    contents = {name: file_hash(Path(path)) for name, path in files.items() if path and Path(path).is_file()}
    options = {name: value for name, value in metadata["config"].items() if name not in _MAY_CHANGE}
    named = {name: metadata.get(name) for name in ("base_hash", "head", "split", "split_relaxations", "isolated_atoms")}
    if run.original is not potential:
        named["original_state"] = state_hash(run.original)
    # The hash of the base is of its parameters alone; reference energies are buffers in some backends.
    return {
        **named,
        "base_state": state_hash(potential),
        "files": contents,
        "config": options,
        "data": metadata["data"],
    }


def _describe_data(
    metadata: dict[str, Any],
    frames: TargetFrames | None,
    pairs: _Pairs | None,
    old: OldStructures | None,
    earlier: EarlierFrames,
) -> None:
    """Enter what the data are into the metadata."""
    data = {"replay": None if old is None else old.frames}
    if frames is not None:
        data["train"], data["valid"], metadata["split"], isolated = frames
        metadata["isolated_atoms"] = isolated_energies(isolated)
    digests = {name: part.digest() for name, part in data.items() if part is not None} | earlier.digests()
    if pairs is not None:
        named = {"relaxations": pairs.train, "valid_relaxations": pairs.valid}
        digests |= {name: part.digest() for name, part in named.items() if part is not None}
        metadata["split_relaxations"] = pairs.how
    metadata["data"] = digests


def _edge_budget(run: Context, replay: Sequence[AtomGraph], train: Sequence[AtomGraph]) -> EdgeBudget:
    """One bound for all frames: target and replay take turns in the same memory."""

    def probe() -> int:
        return edge_budget(run.potential, [replay, train], run.config, run.log).edges

    # Processes may have different GPUs, and each keeps to its own bound: only the first one's is known later.
    edges = run.processes.together(lambda: run.prepared.value("edges at once", probe))
    return EdgeBudget(edges, run.log)


def _align_frames(run: Context, frames: TargetFrames, replay: list[AtomGraph], earlier: EarlierFrames) -> Target:
    """Tell what the frames are, and bring their energies to the model's reference."""
    train, valid, how, _ = frames
    named = {"train": train} | ({} if valid is None else {"valid": valid})
    replay_elements = {int(z) for graph in replay for z in graph.numbers} or None
    run.log(data_report(named, replay_elements))
    run.log(f"split: {how}")
    for line in target_notes(frames, run.config):
        run.log(line)
    earlier.predict(run)
    target = check_and_align(run, train, valid, run.config.drop_outliers, functools.partial(earlier.refit, run))
    if target.offsets is not None:
        # Of the labels to the model, which the calculator can add back, or of the model, which has them now.
        name = "reference_offsets" if run.config.reference == "align" else "shifted_by"
        run.metadata[name] = target.offsets.to_dict()["offsets"]
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


def _tell_pairs(pairs: _Pairs, log: Log) -> None:
    for part in (pairs.train, pairs.valid):
        if part is not None:
            log(pair_report(part))
    log(f"split of relaxations: {pairs.how}")
    for note in [] if pairs.valid is None else pair_split_notes(pairs.train, pairs.valid):
        log(f"note: {note}")


def _target_energies(run: Context, pairs: PairSet) -> list[float]:
    """Energies of the relaxed structures in the potential's own reference, eV; NaN where there is none."""
    if not pairs.num_energies:
        raise DataError(f"the loss of bptt has an energy weight, but no pair of {pairs.name} has an energy")
    frames = FrameSet.from_atoms(
        [pair.relaxed for pair in pairs], name=pairs.name, energies=[pair.energy for pair in pairs]
    )

    def predict() -> list[float]:
        graphs = frames.graphs(run.potential.cutoff)
        predictions = predict_many(run.potential, graphs, forces=False, stress=False, processes=run.processes)
        return [float(prediction.energy[0]) for prediction in predictions]

    offsets = fit_reference(frames, run.prepared.value("energies of relaxed structures", predict))
    run.log(f"energies of relaxed structures: {offsets.describe()}")
    return [math.nan if frame.energy is None else frame.energy for frame in align(frames, offsets)]
