"""Gradients through relaxations: rollouts, their gradients, and losses on where they end."""

from ase_finetune.trajectories.ends import final_structure
from ase_finetune.trajectories.evaluation import PairError, RelaxationErrors, evaluate_relaxations, summarize
from ase_finetune.trajectories.implicit import FixedPointSolver
from ase_finetune.trajectories.losses import StructureLoss, cell_strain, delta_q, log_volume_ratio, rmsd
from ase_finetune.trajectories.rollout import GradientOptions, Rollout, rollout
from ase_finetune.trajectories.structures import Structures, displacements

__all__ = [
    "FixedPointSolver",
    "GradientOptions",
    "PairError",
    "RelaxationErrors",
    "Rollout",
    "StructureLoss",
    "Structures",
    "cell_strain",
    "delta_q",
    "displacements",
    "evaluate_relaxations",
    "final_structure",
    "log_volume_ratio",
    "rmsd",
    "rollout",
    "summarize",
]
