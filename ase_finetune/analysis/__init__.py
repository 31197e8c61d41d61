"""Judging potentials: errors against reference data."""

from ase_finetune.analysis.evaluation import Evaluation, evaluate_calculator

__all__ = ["Evaluation", "evaluate_calculator"]
