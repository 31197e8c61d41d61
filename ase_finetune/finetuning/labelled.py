"""Labelled frames that are replayed, and what becomes of their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ase_finetune.data import FrameSet
from ase_finetune.finetuning.context import Context
from ase_finetune.finetuning.history import comparison_table
from ase_finetune.finetuning.preparing import labelled_graphs
from ase_finetune.finetuning.recording import MOST_FRAMES, JudgedSet
from ase_finetune.finetuning.state import measured_from_json, measured_to_json
from ase_finetune.graphs import AtomGraph
from ase_finetune.metrics import evaluate


@dataclass
class Labelled:
    """Labelled frames in the reference that is trained in.

    Attributes
    ----------
    run
        Whose potential is trained on them.
    train
        Frames to replay.
    held_out
        Those that an earlier round was validated on.
    graphs
        Of ``train``.
    """

    run: Context
    train: FrameSet
    held_out: FrameSet
    graphs: list[AtomGraph] = field(init=False)

    def __post_init__(self) -> None:
        # Before training.
        self.graphs = list(labelled_graphs(self.run.potential, self.train))
        self._judged = list(labelled_graphs(self.run.potential, self.held_out)) or self.graphs[:MOST_FRAMES]
        self._before = self.run.prepared.value("errors on earlier frames", self._measure) if self._judged else {}

    def replayed(self, others: int) -> list[AtomGraph]:
        """The frames as often as it takes for them to be drawn about as often as ``others`` other structures together.

        A dozen frames among hundreds of old structures would hardly ever be drawn.
        """
        return self.graphs * max(1, others // len(self.graphs)) if self.graphs else []

    def describe(self, index: int) -> str:
        """How messages name one of those that are replayed."""
        return self.train.describe(index % len(self.train))

    def judged(self) -> list[JudgedSet]:
        """The set that shows what becomes of them: held-out frames where there are some."""
        frames = self.held_out if len(self.held_out) else self.train
        return [JudgedSet(frames.name, self._judged, frames.describe)] if self._judged else []

    def conclude(self) -> None:
        """Log the errors before and after, and enter them into the metadata."""
        if not self._judged:
            return
        before, after = (measured_from_json(each)["errors"] for each in (self._before, self._measure()))
        if before is None or after is None:
            return
        frames = self.held_out if len(self.held_out) else self.train
        role = "validation frames" if len(self.held_out) else "training frames"
        self.run.log(f"{frames.name}, {role} ({len(self._judged)}):")
        self.run.log(comparison_table({"earlier": before}, {"earlier": after}))
        errors = {"before": before.to_dict(), "after": after.to_dict()}
        self.run.metadata["earlier_frames"] = {"frames": len(self._judged), "role": role, **errors}

    def _measure(self) -> dict[str, Any]:
        run = self.run
        errors = evaluate(run.potential, self._judged, run.config.loss, processes=run.processes)
        return measured_to_json({"errors": errors})


def spread(sets: Sequence[FrameSet], name: str, most: int) -> FrameSet:
    """Up to ``most`` frames of several sets, evenly; the new set has this ``name``."""
    places = [(frames, position) for frames in sets for position in range(len(frames))]
    chosen = sorted({int(k) for k in np.linspace(0, len(places) - 1, min(most, len(places))).round()})
    return FrameSet(name, [places[k][0][places[k][1]] for k in chosen])
