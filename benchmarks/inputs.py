"""Structures, models and trainers that several benchmarks share."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read

from ase_finetune import FinetuneConfig
from ase_finetune.continual import EWCPenalty, FisherInformation
from ase_finetune.data import embedded_replay
from ase_finetune.finetuning.frame_task import FrameBatches, FrameTask, Replay, edge_budget
from ase_finetune.finetuning.history import Log
from ase_finetune.finetuning.training import Trainer
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials import Potential
from ase_finetune.potentials.imports import import_backend
from benchmarks.suite import EXAMPLES, Setting

MODEL = "7net-0"
LIPS = EXAMPLES / "lips_train.extxyz"
MPTRJ = EXAMPLES / "mptrj_replay.extxyz"

#: Far from harmful to the weights, however long a benchmark trains.
RATE = 1e-5


def silicon(*repeats: int, seed: int = 1) -> Atoms:
    """Cubic cells of silicon with displaced atoms."""
    atoms = bulk("Si", cubic=True) * repeats
    atoms.rattle(0.05, seed=seed)
    return atoms


def small_crystals(count: int, largest: int, rattle: float = 0.0) -> list[Atoms]:
    """Embedded replay structures of at most ``largest`` atoms; once more with displacements if they are too few."""
    small = [atoms for atoms in embedded_replay() if len(atoms) <= largest]
    chosen = []
    for index, atoms in zip(range(count), itertools.cycle(small), strict=False):
        crystal = atoms.copy()
        crystal.rattle(max(rattle, 0.03 if index >= len(small) else 0.0), seed=index)
        chosen.append(crystal)
    return chosen


def frames(path: Any, count: int) -> list[Atoms]:
    """The first labelled frames of a file."""
    found: list[Atoms] = read(path, index=f":{count}")
    return found


def target(setting: Setting) -> Path:
    """Frames to train on: a sulfide of 83 atoms, or small crystals in the quick form."""
    return MPTRJ if setting.quick else LIPS


def trainer(
    potential: Potential,
    graphs: Sequence[AtomGraph],
    config: FinetuneConfig,
    replay: Sequence[AtomGraph] = (),
    penalty: EWCPenalty | None = None,
) -> Trainer:
    """Our trainer as `finetune` makes it, without evaluations; replay comes in the order given."""
    log = Log(verbose=False)
    budget = edge_budget(potential, [graphs, replay], config, log)
    task = FrameTask(FrameBatches(potential, graphs, config.loss, budget), [], config)
    old = FrameBatches(potential, replay, config.loss, budget, weight=config.replay_weight) if replay else None
    made = Trainer(potential, task, Replay(old), config, penalty, log)
    if old is not None:
        order = batches(len(replay), config.replay_batch_size or config.batch_size)
        made._replay_pieces = old.pieces(itertools.cycle(order))
    return made


def batches(count: int, size: int) -> list[list[int]]:
    """Batches in order; a last one that is not full is left out."""
    return [list(range(first, first + size)) for first in range(0, count - size + 1, size)]


def train(made: Trainer, parts: Sequence[list[int]]) -> None:
    """One step on each batch."""
    made.train(parts)


def flat_penalty(potential: Potential) -> EWCPenalty:
    """An EWC penalty whose cost is that of any other: the values of the Fisher information do not matter to it."""
    named = dict(potential.native_parameters(trainable_only=True))
    fisher = FisherInformation({name: torch.full_like(parameter, 1e-3) for name, parameter in named.items()})
    return EWCPenalty(named.items(), fisher, 1.0)


def random_mace(numbers: Sequence[int], tiny: bool = False) -> torch.nn.Module:
    """A native MACE of the size of the small public ones (128x0e+128x1o, two layers, 5 Å) with random weights."""
    modules = import_backend("mace.modules", "'ase_finetune[mace]'")
    o3 = import_backend("e3nn.o3", "'ase_finetune[mace]'")
    width = 4 if tiny else 128
    block = modules.RealAgnosticResidualInteractionBlock
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e3nn's use of torch.jit
        torch.manual_seed(0)
        native: torch.nn.Module = modules.ScaleShiftMACE(
            r_max=5.0,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=1 if tiny else 3,
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=2,
            num_elements=len(numbers),
            hidden_irreps=o3.Irreps(f"{width}x0e+{width}x1o"),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=np.linspace(-2.0, -1.0, len(numbers)),
            avg_num_neighbors=30.0,
            atomic_numbers=sorted(numbers),
            correlation=2 if tiny else 3,
            gate=torch.nn.functional.silu,
            radial_MLP=[8] if tiny else [64, 64, 64],
            heads=["Default"],
            atomic_inter_scale=0.8,
            atomic_inter_shift=0.0,
        )
    return native.float()
