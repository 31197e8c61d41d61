"""Replay structures: where they come from, and what each is for."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from ase_finetune.data import FrameSet, embedded_replay, read_frames
from ase_finetune.errors import DataError, InputError
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.preparing import Frames
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials.base import Potential


class OldStructures(NamedTuple):
    """What stands for the old material.

    Attributes
    ----------
    frames
        Those to use first, then those that only watch forgetting.
    trained
        How many are to be used.
    has_labels
        Whether the labels of the files are used; otherwise the pretrained model makes them.
    beside
        Labelled sets that were given beside them: trained on, and not watched.
    """

    frames: FrameSet
    trained: int
    has_labels: bool
    beside: Sequence[FrameSet] = ()

    def graphs(self, potential: Potential) -> list[AtomGraph]:
        """All of them, the used ones first, with the labels of their file."""
        return list(self.frames.graphs(potential.cutoff))

    @property
    def describe(self) -> Callable[[int], str]:
        """How messages name one of those that are used."""
        return self.frames.describe


#: Where replay structures come from: one source, or a list of several with labels of their own.
ReplaySources = Frames | Sequence[Frames]


def read_replay(
    potential: Potential, replay: ReplaySources | None, config: FinetuneConfig, log: Log
) -> OldStructures | None:
    """The replay structures that the model knows, in their roles; ``None`` without any.

    Raises
    ------
    InputError, DataError
        If the method needs some, or they cannot be used.
    """
    if replay is None:
        if config.max_forgetting is not None:
            raise InputError("max_forgetting is measured on watched replay structures, but replay=None")
        if config.uses_replay:
            raise InputError(f"method={config.method!r} needs replay structures, but replay=None")
        if config.uses_ewc and config.fisher in ("auto", "label-free", "empirical"):
            raise InputError("estimating the Fisher information needs replay structures, but replay=None")
        return None
    most = config.replay_size + config.monitor_size
    labelled: list[FrameSet] = []
    bare: list[FrameSet] = []
    for frames in _read_sources(replay):
        usable = _usable(potential, frames, log)
        has_labels = config.replay_labels != "pseudo" and any(usable[:most].num_labels.values())
        (labelled if has_labels else bare).append(usable)
    if config.replay_labels == "data" and bare:
        raise DataError(f"replay_labels='data', but the {bare[0].name} structures carry no labels")
    frames = _merged(bare or labelled, most)
    if len(frames) < 2:
        raise DataError(f"replay has {len(frames)} usable structures; at least 2 are needed")
    trained, watching = _roles(len(frames), config)
    return OldStructures(frames.select([*trained, *watching]), len(trained), not bare, labelled if bare else ())


def _read_sources(replay: ReplaySources) -> list[FrameSet]:
    """The structures of each source."""
    several = isinstance(replay, (list, tuple)) and any(not isinstance(item, Atoms) for item in replay)
    sources: Sequence[Any] = replay if several else [replay]  # type: ignore[assignment]
    sets = []
    for number, source in enumerate(sources, 1):
        shown = f" ({Path(source).name})" if isinstance(source, (str, os.PathLike)) else ""
        name = f"replay {number}{shown}" if several else "replay"
        structures = embedded_replay() if isinstance(source, str) and source == "embedded" else source
        sets.append(read_frames(structures, name=name, require_labels=False))
    return sets


def _usable(potential: Potential, frames: FrameSet, log: Log) -> FrameSet:
    """The structures of elements that the model knows."""
    known = set(potential.numbers)
    usable = [index for index, frame in enumerate(frames) if known.issuperset(frame.atoms.numbers.tolist())]
    if len(usable) < len(frames):
        unknown = f"{len(frames) - len(usable)} of {len(frames)}"
        log(f"{frames.name}: {unknown} structures hold elements the model does not know")
    return frames.select(usable)


def _merged(sets: Sequence[FrameSet], most: int) -> FrameSet:
    """The first structures of all sets, taken in turn."""
    if len(sets) == 1:
        return sets[0].select(range(min(most, len(sets[0]))))
    turns = ((k, frames) for k in range(max(map(len, sets))) for frames in sets if k < len(frames))
    return FrameSet("replay", [frames[k] for k, frames in itertools.islice(turns, most)])


def _roles(count: int, config: FinetuneConfig) -> tuple[list[int], list[int]]:
    """Which of ``count`` replay structures the method uses, and which only watch forgetting.

    Every k-th one watches, whatever the method, so that methods can be compared. The embedded structures
    are ordered by diversity, so both parts stay diverse.
    """
    watching = np.linspace(0, count - 1, min(config.monitor_size, count // 2)).round().astype(int).tolist()
    others = [index for index in range(count) if index not in set(watching)]
    used = config.replay_size if config.uses_replay else config.fisher_size if config.uses_ewc else 0
    return others[:used], watching
