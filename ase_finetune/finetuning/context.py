"""What all parts of a run share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.prepared import Prepared
from ase_finetune.finetuning.rounds import Rounds
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.base import Potential


@dataclass(frozen=True)
class Context:
    """What all parts of a run share.

    Attributes
    ----------
    potential
        What is trained.
    config
        The options.
    log
        Of what the run does.
    metadata
        What will be known about the result.
    processes
        Share the work.
    prepared
        What an earlier start of the run found.
    rounds
        Those before this one.
    """

    potential: Potential
    config: FinetuneConfig
    log: Log
    metadata: dict[str, Any]
    processes: Processes = ALONE
    prepared: Prepared = field(default_factory=Prepared)
    rounds: Rounds = field(default_factory=Rounds)

    @property
    def original(self) -> Potential:
        """The pretrained potential that must not be forgotten: before training the potential itself in a first round.

        In later rounds the one that the first round began with.
        """
        return self.rounds.original or self.potential

    @property
    def original_hash(self) -> str:
        """Of the weights of the original."""
        return str(self.rounds.earlier[0]["hash"] if self.rounds.earlier else self.metadata["base_hash"])

    @property
    def surroundings(self) -> dict[str, Any]:
        """What the last digits of the result depend on besides data and options."""
        return {
            "device": self.potential.device.type,
            "processes": self.processes.size,
            "threads": torch.get_num_threads(),
            **self.metadata["versions"],
        }
