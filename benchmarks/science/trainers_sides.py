"""The two sides of trainers.py: steps of our trainer, and the same steps of sevenn's in an environment of its own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ase_finetune import FinetuneConfig
from ase_finetune.continual import EWCPenalty, load_anchor, load_fisher
from ase_finetune.data import FrameSet, read_frames
from ase_finetune.errors import CheckpointError, DataError
from ase_finetune.files import make_folder
from ase_finetune.finetuning.frame_task import FrameBatches, FrameTask, Replay, edge_budget
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.optimizing import build_optimizer, build_schedule
from ase_finetune.finetuning.sampling import endless_batches, epoch_batches
from ase_finetune.finetuning.training import Trainer
from ase_finetune.potentials import Potential, load_potential
from benchmarks.inputs import MODEL
from benchmarks.paired import seconds, versions
from benchmarks.reewc_epoch import worker_options
from benchmarks.suite import Setting
from benchmarks.workers import Worker


@dataclass(frozen=True)
class Chosen:
    """Some frames of a file: their numbers in it, and themselves."""

    path: Path
    numbers: list[int]
    frames: FrameSet


def choose(path: Path, count: int, largest: int | None = None) -> Chosen:
    """Up to ``count`` frames of at most ``largest`` atoms, spread evenly over a file."""
    frames = read_frames(path)
    fitting = [number for number, size in enumerate(frames.sizes) if largest is None or size <= largest]
    count = min(count, len(fitting))
    numbers = [fitting[k * len(fitting) // count] for k in range(count)]
    return Chosen(path, numbers, frames.select(numbers))


@dataclass(frozen=True)
class Steps:
    """Pairs of steps: the frames of each target and each replay batch, and the learning rate of both."""

    target: list[list[int]]
    replay: list[list[int]]
    rates: list[float]


def plan_steps(config: FinetuneConfig, target: int, replay: int, every: int) -> list[Steps]:
    """What our trainer does with so many target and replay frames, in parts of ``every`` pairs of steps."""
    epochs = range(1, config.epochs + 1)
    new = [batch for epoch in epochs for batch in epoch_batches(target, config.batch_size, config.seed, epoch)]
    old = endless_batches(replay, config.replay_batch_size or config.batch_size, config.seed + 1)
    rates = learning_rates(config, len(new))
    parts = [slice(first, first + every) for first in range(0, len(new), every)]
    return [Steps(new[part], list(itertools.islice(old, len(new[part]))), rates[part]) for part in parts]


def learning_rates(config: FinetuneConfig, steps: int) -> list[float]:
    """The rate of every iteration of a run."""
    optimizer = build_optimizer([nn.Parameter(torch.zeros(()))], config.learning_rate, config)
    schedule = build_schedule(optimizer, config, steps)
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return rates


@dataclass(frozen=True)
class Work:
    """What both sides do.

    Attributes
    ----------
    config
        Options of the training.
    target, replay
        What is trained on.
    fisher, anchor
        Files of tensors by parameter name.
    parts
        After each of them the weights are written.
    all_parameters
        Train also what the checkpoint of the model freezes.
    setting
        Device, and the environment of sevenn's side.
    """

    config: FinetuneConfig
    target: Chosen
    replay: Chosen
    fisher: Path
    anchor: Path
    parts: list[Steps]
    all_parameters: bool
    setting: Setting


def weights(folder: Path, part: int) -> Path:
    """The file with the weights after so many parts."""
    return folder / f"{part}.pt"


def ours(work: Work, folder: Path) -> Iterator[dict[str, Any]]:
    """Our trainer: says what it trains, then the time of each part; the weights of every moment are in ``folder``."""
    make_folder(folder)
    potential, _ = load_potential(MODEL, device=work.setting.device)
    if work.all_parameters:
        potential.native.requires_grad_(True)
    made = _trainer(work, potential)
    _write(potential, weights(folder, 0))
    trained = [name for name, _ in potential.native_parameters(trainable_only=True)]
    yield {"trained": trained, "versions": versions()}
    for number, part in enumerate(work.parts, start=1):
        start = time.process_time()
        wall = seconds(lambda part=part: made.train(part.target))  # type: ignore[misc]
        yield {"seconds": wall, "cpu_seconds": time.process_time() - start}
        _write(potential, weights(folder, number))


def ours_one_by_one(work: Work, folder: Path) -> Iterator[dict[str, Any]]:
    """Our trainer with every structure evaluated alone: the same sums in another order. A yardstick of rounding."""
    yield from ours(replace(work, config=replace(work.config, max_edges=1)), folder)


def _trainer(work: Work, potential: Potential) -> Trainer:
    config, log = work.config, Log(verbose=False)
    new, old = (chosen.frames.graphs(potential.cutoff) for chosen in (work.target, work.replay))
    budget = edge_budget(potential, [new, old], config, log)
    task = FrameTask(FrameBatches(potential, new, config.loss, budget), [], config)
    named, anchor = dict(potential.native_parameters()), load_anchor(work.anchor)
    if not all(torch.equal(anchor[name].to(value), value) for name, value in named.items()):
        raise CheckpointError(
            f"{work.anchor} is not {MODEL} as the installed sevenn holds it; needs sevenn < 0.11 here"
        )
    penalty = EWCPenalty(
        potential.native_parameters(trainable_only=True),
        load_fisher(work.fisher),
        float(config.ewc_lambda or 0.0),
        anchor=anchor,
        known=named,
    )
    replay = Replay(FrameBatches(potential, old, config.loss, budget))
    return Trainer(potential, task, replay, config, penalty, log)


def _write(potential: Potential, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save({name: value.detach().cpu() for name, value in potential.native_parameters()}, part)
    part.replace(path)


def sevenns(work: Work, folder: Path, *, reorder: bool = True) -> Iterator[dict[str, Any]]:
    """The trainer of sevenn, as :func:`ours`.

    Parameters
    ----------
    work, folder
        As of :func:`ours`.
    reorder
        Bring Fisher information and anchor to the order in which sevenn >= 0.11 holds its weights.

    Raises
    ------
    DataError
        If it has read other structures or labels than ours.
    """
    make_folder(folder)
    options = _options(work, folder) | {"reorder": reorder}
    with Worker(work.setting.newest_sevenn, "sevenn_reewc_worker.py", options) as worker:
        for chosen, labels in zip((work.target, work.replay), worker.ready["labels"], strict=True):
            _check_same(chosen, labels)
        yield {name: worker.ready[name] for name in ("trained", "versions", "penalty", "reordered")}
        for number, part in enumerate(work.parts, start=1):
            yield worker.ask(asdict(part) | {"weights": str(weights(folder, number))})


def sevenns_as_it_comes(work: Work, folder: Path) -> Iterator[dict[str, Any]]:
    """The trainer of sevenn with Fisher information and anchor as their files have them, which is in another order."""
    yield from sevenns(work, folder, reorder=False)


def _options(work: Work, folder: Path) -> dict[str, Any]:
    config = work.config
    shared = worker_options(work.setting, config.batch_size, config.replay_batch_size or config.batch_size, 1)
    return {
        "model": shared["model"],
        "threads": shared["threads"],
        "config": shared["config"],
        "seed": config.seed,
        "target": [str(work.target.path), work.target.numbers],
        "replay": [str(work.replay.path), work.replay.numbers],
        "fisher": str(work.fisher),
        "anchor": str(work.anchor),
        "strength": config.ewc_lambda,
        "all_parameters": work.all_parameters,
        "weights": str(weights(folder, 0)),
    }


def _check_same(chosen: Chosen, labels: list[list[float]]) -> None:
    for k, (size, energy) in enumerate(labels):
        frame = chosen.frames[k]
        if len(frame.atoms) != size or frame.energy is None or abs(frame.energy - energy) > 1e-6 * abs(energy):
            raise DataError(f"sevenn reads another structure or energy as frame {chosen.numbers[k]} of {chosen.path}")
