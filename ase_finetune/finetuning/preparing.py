"""Everything that happens before step 1: data, checks, reference energies, replay and Fisher information."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms

from ase_finetune.continual import (
    EWCPenalty,
    FisherInformation,
    empirical_fisher,
    gaussian_fisher,
    load_anchor,
    load_fisher,
    pseudo_label,
)
from ase_finetune.data import (
    FrameSet,
    PredictionCheck,
    ReferenceOffsets,
    align,
    check_disjoint,
    embedded_replay,
    fit_reference,
    read_frames,
    split_frames,
)
from ase_finetune.errors import CheckpointError, DataError, InputError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.history import Log
from ase_finetune.graphs import AtomGraph
from ase_finetune.metrics import Errors, ErrorSums
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.batched import predict_each

Frames = str | os.PathLike[str] | Sequence[Atoms] | FrameSet


def read_target(
    train: Frames, valid: Frames | float | None, config: FinetuneConfig
) -> tuple[FrameSet, FrameSet | None, str]:
    """Training and validation frames, and how they were separated.

    Raises
    ------
    DataError
        If labels are missing or unusable, or a frame is in both sets.
    """
    read = functools.partial(
        read_frames, energy_key=config.energy_key, forces_key=config.forces_key, stress_key=config.stress_key
    )
    frames = read(train, name="train", stream=config.stream)
    if config.num_workers and not frames.is_streamed:
        raise InputError(
            f"num_workers={config.num_workers}, but workers have nothing to read ahead: the training frames are in "
            "memory; stream=True leaves those of an ASE database on disk"
        )
    if valid is None:
        if config.early_stopping is not None:
            raise InputError("early_stopping needs validation frames to judge by, but valid=None")
        return frames, None, "no validation frames: the weights of the last epoch are kept"
    if isinstance(valid, (int, float)):
        split = split_frames(frames, valid, seed=config.seed, group_by=config.group_by)
        return split.train, split.valid, split.description
    held_out = read(valid, name="valid", stream=None if config.stream else config.stream)
    check_disjoint(frames, held_out)
    return frames, held_out, "validation frames given"


def labelled_graphs(potential: Potential, frames: FrameSet) -> Sequence[AtomGraph]:
    """Graphs with labels in the potential's dtype; unknown elements raise and name the frame."""
    unknown = set(frames.elements) - set(potential.numbers)
    for frame in frames if unknown else ():
        try:
            potential.check_numbers(frame.atoms.numbers)
        except InputError as error:
            raise DataError(f"frame {frame.index} of {frames.name} ({frame.source}): {error}") from error
    return frames.graphs(potential.cutoff, potential.dtype)


class Target(NamedTuple):
    """Frames to train on, the offsets between them and the model, and the untouched model's errors on them."""

    train: FrameSet
    valid: FrameSet | None
    offsets: ReferenceOffsets | None
    untouched: Errors


def check_and_align(
    potential: Potential,
    train: FrameSet,
    valid: FrameSet | None,
    config: FinetuneConfig,
    log: Log,
    processes: Processes = ALONE,
) -> Target:
    """Compare the labels with the pretrained model, and bring energies to its reference, or it to theirs.

    Raises
    ------
    DataError
        If forces or stress are in other units or of the opposite sign.
    """
    graphs = labelled_graphs(potential, train)
    check, sums = PredictionCheck(train), ErrorSums(config.loss)
    with log.bar(len(graphs), "pretrained model on train") as bar:
        for index, prediction in predict_each(potential, graphs, on_structure=bar.update, processes=processes):
            check.add(index, float(prediction.energy[0]), _numpy(prediction.forces), _numpy(prediction.stress)[0])
            # Energies are compared when their reference is known.
            sums.add(prediction, graphs[index].without_energy())
    for note in check.notes():
        log(f"note: {note}")
    if config.reference == "none" or not train.num_labels["energy"]:
        log("reference energies: raw labels are trained on")
        return Target(train, valid, None, _with_energies(sums, train, check.energies))
    offsets = fit_reference(train, check.energies)
    log(offsets.describe())
    aligned = align(train, offsets)
    errors = _with_energies(sums, aligned, check.energies)
    if config.reference == "shift":
        potential.shift_energies(dict(offsets.offsets))
        log("the model's own per-element energies were moved by these offsets")
        return Target(train, valid, offsets, errors)
    return Target(aligned, None if valid is None else align(valid, offsets), offsets, errors)


def _with_energies(sums: ErrorSums, frames: FrameSet, predicted: Sequence[float]) -> Errors:
    """Errors of sums to which those of the energies are added."""
    pairs = zip(predicted, frames, strict=True)
    residuals = [(energy - frame.energy) / len(frame.atoms) for energy, frame in pairs if frame.energy is not None]
    sums.add_energies(torch.tensor(residuals, dtype=torch.float64))
    return sums.errors()


def shift_labels(graphs: Sequence[AtomGraph], offsets: ReferenceOffsets) -> list[AtomGraph]:
    """Replay labels in the reference of a model whose own per-element energies were moved by ``offsets``."""
    shifted = []
    for graph in graphs:
        assert graph.energy is not None
        assert graph.energy_mask is not None
        offset = offsets.energy(graph.numbers.tolist())
        shifted.append(graph.replace(energy=graph.energy + offset * graph.energy_mask.to(graph.energy)))
    return shifted


def replay_graphs(
    potential: Potential, replay: Frames | None, config: FinetuneConfig, log: Log, processes: Processes = ALONE
) -> tuple[list[AtomGraph], list[AtomGraph], str]:
    """Labelled replay graphs to train on, held-out ones to watch forgetting, and their digest."""
    if replay is None:
        if config.uses_replay:
            raise InputError(f"method={config.method!r} needs replay structures, but replay=None")
        if config.uses_ewc and config.fisher in ("auto", "label-free", "empirical"):
            raise InputError("estimating the Fisher information needs replay structures, but replay=None")
        return [], [], ""
    if isinstance(replay, str) and replay == "embedded":
        frames = read_frames(embedded_replay(), name="replay", require_labels=False)
    else:
        frames = read_frames(replay, name="replay", require_labels=False)
    known = set(potential.numbers)
    usable = [index for index, frame in enumerate(frames) if known.issuperset(frame.atoms.numbers.tolist())]
    if len(usable) < len(frames):
        log(f"replay: {len(frames) - len(usable)} of {len(frames)} structures hold elements the model does not know")
    usable = usable[: config.replay_size + config.monitor_size]
    if len(usable) < 2:
        raise DataError(f"replay has {len(usable)} usable structures; at least 2 are needed")
    trained, watching = _roles(len(usable), config)
    frames = frames.select([usable[index] for index in (*trained, *watching)])
    has_labels = any(frames.num_labels.values())
    if config.replay_labels == "data" and not has_labels:
        raise DataError("replay_labels='data', but the replay structures carry no labels")
    if config.replay_labels == "data" or (config.replay_labels == "auto" and has_labels):
        graphs = list(frames.graphs(potential.cutoff, potential.dtype))
        log(f"replay: {len(graphs)} structures with the labels of their file")
    else:
        if config.uses_ewc and config.fisher == "empirical":
            raise InputError(
                "fisher='empirical' needs replay structures with labels of their own: on labels made by the model "
                "itself the residuals vanish; use the label-free form (fisher='label-free')"
            )
        graphs = [graph.without_labels() for graph in frames.graphs(potential.cutoff, potential.dtype)]
        with log.bar(len(graphs), "pretrained model on replay") as bar:
            graphs = pseudo_label(
                potential, graphs, cache=_cache_folder(), on_structure=bar.update, processes=processes
            )
        log(f"replay: {len(graphs)} structures labelled by the pretrained model")
    return graphs[: len(trained)], graphs[len(trained) :], frames.digest()


def _roles(count: int, config: FinetuneConfig) -> tuple[list[int], list[int]]:
    """Which of ``count`` replay structures the method uses, and which only watch forgetting.

    Every k-th one watches, whatever the method, so that methods can be compared. The embedded structures
    are ordered by diversity, so both parts stay diverse.
    """
    watching = np.linspace(0, count - 1, min(config.monitor_size, count // 2)).round().astype(int).tolist()
    others = [index for index in range(count) if index not in set(watching)]
    used = config.replay_size if config.uses_replay else config.fisher_size if config.uses_ewc else 0
    return others[:used], watching


def build_penalty(
    potential: Potential,
    replay: list[AtomGraph],
    config: FinetuneConfig,
    log: Log,
    model_hash: str,
    processes: Processes = ALONE,
) -> tuple[EWCPenalty, FisherInformation]:
    """The EWC penalty of the config; Fisher information is estimated, or read if it is of the model of the hash.

    Raises
    ------
    CheckpointError
        If a Fisher file belongs to another model or loss.
    """
    fisher = _fisher(potential, replay, config, log, model_hash, processes)
    own = fisher.metadata.get("kind") != "published"
    normalize = own if config.fisher_normalize is None else config.fisher_normalize
    if normalize:
        fisher = fisher.normalized()
    strength = config.ewc_lambda
    if strength is None:
        strength = DEFAULT_LAMBDA_NORMALIZED if normalize else DEFAULT_LAMBDA_RAW
    anchor = None if config.fisher_anchor is None else _checked_anchor(potential, config.fisher_anchor)
    penalty = EWCPenalty(
        potential.native_parameters(trainable_only=True),
        fisher,
        strength,
        anchor=anchor,
        known=[name for name, _ in potential.native_parameters()],
    )
    shares = list(fisher.shares().items())[:3]
    kind = fisher.metadata.get("kind", "unknown")
    log(
        f"Fisher information: {kind}, {'divided by its mean' if normalize else 'as it is'}, lambda {strength:g}; "
        f"largest shares: {', '.join(f'{name} {share:.0%}' for name, share in shares)}"
    )
    return penalty, fisher


def _checked_anchor(potential: Potential, path: str) -> dict[str, torch.Tensor]:
    """Anchor parameters, which must be those of the pretrained model: else they are of another one."""
    anchor = load_anchor(path)
    for name, parameter in potential.native_parameters(trainable_only=True):
        value = anchor.get(name)
        if value is not None and value.shape == parameter.shape:
            difference = float((value.to(parameter) - parameter.detach()).abs().max())
            if difference > 1e-4 * max(1.0, float(parameter.detach().abs().max())):
                raise CheckpointError(f"{path} is the anchor of another model: {name} differs by {difference:.2g}")
    return anchor


#: EWC strength for a Fisher information divided by its mean, and the published one for a raw Fisher.
DEFAULT_LAMBDA_NORMALIZED = 1e-2
DEFAULT_LAMBDA_RAW = 1e5


def _fisher(
    potential: Potential,
    replay: list[AtomGraph],
    config: FinetuneConfig,
    log: Log,
    model_hash: str,
    processes: Processes,
) -> FisherInformation:
    graphs = replay[: config.fisher_size]
    if config.fisher in ("auto", "label-free"):
        with log.bar(len(graphs) * config.fisher_draws, "Fisher information") as bar:
            shared: dict[str, Any] = {"seed": config.seed, "on_structure": bar.update, "processes": processes}
            return gaussian_fisher(potential, graphs, draws=config.fisher_draws, **shared)
    if config.fisher == "empirical":
        with log.bar(len(graphs), "Fisher information") as bar:
            shared = {"seed": config.seed, "on_structure": bar.update, "processes": processes}
            return empirical_fisher(potential, graphs, config.loss, probes=config.fisher_probes, **shared)
    return load_fisher(config.fisher, model_hash=model_hash, loss=config.loss)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ase_finetune" / "replay"


def _numpy(tensor: torch.Tensor | None) -> Any:
    assert tensor is not None
    return tensor.numpy()
