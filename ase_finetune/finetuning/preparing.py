"""Labelled frames before step 1: reading, checks against the pretrained model, and reference energies."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from ase import Atoms

from ase_finetune.data import (
    FrameSet,
    Outlier,
    PredictionCheck,
    ReferenceOffsets,
    align,
    check_disjoint,
    describe_isolated,
    find_outliers,
    fit_reference,
    leave_out_isolated,
    read_frames,
    split_frames,
    split_notes,
)
from ase_finetune.data.labels import LABELS
from ase_finetune.errors import DataError, InputError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.context import Context
from ase_finetune.finetuning.history import Log
from ase_finetune.graphs import AtomGraph
from ase_finetune.metrics import Errors, ErrorSums
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.batched import predict_each

Frames = str | os.PathLike[str] | Sequence[Atoms] | FrameSet


class TargetFrames(NamedTuple):
    """Training and validation frames, how they were separated, and the isolated atoms that each source had besides."""

    train: FrameSet
    valid: FrameSet | None
    how: str
    isolated: list[FrameSet]


def read_target(train: Frames, valid: Frames | float | None, config: FinetuneConfig, cutoff: float) -> TargetFrames:
    """Training and validation frames without isolated atoms (no neighbour within ``cutoff``, Å).

    Raises
    ------
    DataError
        If labels are missing or unusable, all frames are isolated atoms, or a frame is in both sets.
    """
    isolated: list[FrameSet] = []

    def read(source: Frames, name: str, stream: bool | None) -> FrameSet:
        keys = {f"{label}_key": getattr(config, f"{label}_key") for label in LABELS}
        frames, lone = leave_out_isolated(read_frames(source, name=name, stream=stream, **keys), cutoff)
        if len(lone):
            isolated.append(lone)
        # Once more, for the labels may all have been those of isolated atoms.
        return read_frames(frames, name=name)

    frames = read(train, "train", config.stream)
    if config.num_workers and not frames.is_streamed:
        raise InputError(
            f"num_workers={config.num_workers}, but workers have nothing to read ahead: the training frames are in "
            "memory; stream=True leaves those of an ASE database on disk"
        )
    held_out: FrameSet | None = None
    if valid is None:
        if config.early_stopping is not None:
            raise InputError("early_stopping needs validation frames to judge by, but valid=None")
        how = "no validation frames: the weights of the last epoch are kept"
    elif isinstance(valid, (int, float)):
        split = split_frames(frames, valid, seed=config.seed, group_by=config.group_by)
        frames, held_out, how = split.train, split.valid, split.description
    else:
        held_out, how = read(valid, "valid", None if config.stream else config.stream), "validation frames given"
        check_disjoint(frames, held_out)
    return TargetFrames(frames, held_out, how, isolated)


def target_notes(frames: TargetFrames, config: FinetuneConfig) -> list[str]:
    """Isolated atoms that were left out, and what validation cannot judge."""
    lines = [describe_isolated(lone) for lone in frames.isolated]
    if frames.valid is None:
        return lines
    trained_on = [label for label in LABELS if getattr(config.loss, f"{label}_weight") > 0]
    return lines + [f"note: {note}" for note in split_notes(frames.train, frames.valid, trained_on)]


def labelled_graphs(potential: Potential, frames: FrameSet) -> Sequence[AtomGraph]:
    """Graphs with labels; unknown elements raise and name the frame."""
    unknown = set(frames.elements) - set(potential.numbers)
    for frame in frames if unknown else ():
        try:
            potential.check_numbers(frame.atoms.numbers)
        except InputError as error:
            raise DataError(f"frame {frame.index} of {frames.name} ({frame.source}): {error}") from error
    return frames.graphs(potential.cutoff)


class Target(NamedTuple):
    """Frames to train on, the offsets between them and the model, and the untouched model's errors on them."""

    train: FrameSet
    valid: FrameSet | None
    offsets: ReferenceOffsets | None
    untouched: Errors


def check_and_align(
    run: Context,
    train: FrameSet,
    valid: FrameSet | None,
    drop_outliers: bool,
    fit: Callable[[FrameSet, Sequence[float]], ReferenceOffsets] = fit_reference,
) -> Target:
    """Compare the labels with the pretrained model, and bring energies to its reference, or it to theirs.

    Parameters
    ----------
    run
        The run.
    train, valid
        Frames.
    drop_outliers
        Leave out training frames that are far off.
    fit
        Finds the offsets between training frames and the energies that the pretrained model gives for them.

    Raises
    ------
    DataError
        If forces or stress are in other units or of the opposite sign.
    """
    config, log = run.config, run.log
    known = run.prepared.value(f"untouched model on {len(train)} frames", lambda: _compare(run, run.original, train))
    energies: list[float] = known["energies"]
    for note in known["notes"]:
        log(f"note: {note}")
    offsets = None
    if config.reference != "none" and train.num_labels["energy"]:
        offsets = fit(*_reference_frames(run, train, valid, energies))
    elif config.reference != "none" and run.rounds.offsets:
        offsets = ReferenceOffsets(run.rounds.offsets, len(run.rounds.offsets))
    aligned = train if offsets is None else align(train, offsets)
    residuals = _residuals(aligned, energies)
    far_off = find_outliers(train, energy=residuals, forces=known["force_errors"], stress=known["stress_errors"])
    for outlier in far_off:
        log(f"note: {outlier.text}")
    if far_off and drop_outliers:
        # Reference energies and errors are to be those of the others.
        return check_and_align(run, _without(train, far_off, log), valid, drop_outliers=False, fit=fit)
    if run.original is not run.potential:
        # Training begins with the model of the last round.
        name = f"model of the last round on {len(train)} frames"
        known = run.prepared.value(name, lambda: _compare(run, run.potential, train))
        residuals = _residuals(aligned, known["energies"])
    sums = ErrorSums(config.loss)
    sums.load_state(known["sums"])
    sums.add_energies(torch.tensor([value for value in residuals if not math.isnan(value)], dtype=torch.float64))
    if offsets is None:
        log("reference energies: raw labels are trained on")
        return Target(train, valid, None, sums.errors())
    log(offsets.describe() if train.num_labels["energy"] else "reference energies: those of the earlier rounds")
    if config.reference == "shift":
        for potential in {id(potential): potential for potential in (run.potential, run.original)}.values():
            potential.shift_energies(dict(offsets.offsets))
        log("the model's own per-element energies were moved by these offsets")
        return Target(train, valid, offsets, sums.errors())
    return Target(aligned, None if valid is None else align(valid, offsets), offsets, sums.errors())


def _reference_frames(
    run: Context, train: FrameSet, valid: FrameSet | None, energies: Sequence[float]
) -> tuple[FrameSet, Sequence[float]]:
    """What the offsets are fitted on: training frames or, where the config says so, validation frames, too."""
    if valid is None or run.config.reference_frames == "train":
        return train, energies
    name = f"untouched model on {len(valid)} validation frames"
    further = run.prepared.value(name, lambda: _compare(run, run.original, valid))
    return FrameSet("train and valid", [*train, *valid]), [*energies, *further["energies"]]


def _compare(run: Context, potential: Potential, train: FrameSet) -> dict[str, Any]:
    """What a model says about the training frames: its energies and how far the labels are from them."""
    graphs = labelled_graphs(potential, train)
    check, sums = PredictionCheck(train), ErrorSums(run.config.loss)
    with run.log.bar(len(graphs), "pretrained model on train") as bar:
        predictions = predict_each(potential, graphs, on_structure=bar.update, processes=run.processes)
        for index, prediction in predictions:
            check.add(index, float(prediction.energy[0]), _numpy(prediction.forces), _numpy(prediction.stress)[0])
            # Energies are compared when their reference is known.
            sums.add(prediction, graphs[index].without_energy())
    return {
        "energies": check.energies,
        "force_errors": check.force_errors,
        "stress_errors": check.stress_errors,
        "notes": check.notes(),
        "sums": sums.state(),
    }


def _residuals(frames: FrameSet, predicted: Sequence[float]) -> list[float]:
    """Prediction minus label, eV/atom; NaN where there is no label."""
    pairs = zip(predicted, frames, strict=True)
    return [math.nan if f.energy is None else (energy - f.energy) / len(f.atoms) for energy, f in pairs]


def _without(frames: FrameSet, outliers: Sequence[Outlier], log: Log) -> FrameSet:
    dropped = {outlier.position for outlier in outliers}
    rest = [position for position in range(len(frames)) if position not in dropped]
    log(f"{len(dropped)} of {len(frames)} training frames are left out (drop_outliers)")
    return frames.select(rest)


def _numpy(tensor: torch.Tensor | None) -> Any:
    assert tensor is not None
    return tensor.numpy()
