"""Judging potentials: errors, physics, dynamics; and judging the installation they run in."""

from ase_finetune.analysis.doctor import DoctorReport, doctor
from ase_finetune.analysis.dynamics import MDRun, run_md
from ase_finetune.analysis.evaluation import Evaluation, evaluate_calculator
from ase_finetune.analysis.reports import compare_runs, report_run
from ase_finetune.analysis.validation import Validation, validate
from ase_finetune.analysis.watching import MDPoint

__all__ = [
    "DoctorReport",
    "Evaluation",
    "MDPoint",
    "MDRun",
    "Validation",
    "compare_runs",
    "doctor",
    "evaluate_calculator",
    "report_run",
    "run_md",
    "validate",
]
