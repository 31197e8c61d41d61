"""Judging potentials: errors against reference data; and judging the installation they run in."""

from ase_finetune.analysis.doctor import DoctorReport, doctor
from ase_finetune.analysis.evaluation import Evaluation, evaluate_calculator

__all__ = ["DoctorReport", "Evaluation", "doctor", "evaluate_calculator"]
