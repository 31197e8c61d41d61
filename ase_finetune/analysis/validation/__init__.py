"""Physics checks of a calculator in one call, before and after side by side."""

from ase_finetune.analysis.validation.api import CHECKS, Check, validate
from ase_finetune.analysis.validation.crystal import EquationOfState, Equilibrium
from ase_finetune.analysis.validation.defects import Vacancy
from ase_finetune.analysis.validation.diffusion import Diffusion
from ase_finetune.analysis.validation.dimers import Dimers
from ase_finetune.analysis.validation.elasticity import ElasticConstants
from ase_finetune.analysis.validation.lattice_dynamics import Phonons
from ase_finetune.analysis.validation.results import CheckResult, Quantity, Verdict
from ase_finetune.analysis.validation.summary import Validation

__all__ = [
    "CHECKS",
    "Check",
    "CheckResult",
    "Diffusion",
    "Dimers",
    "ElasticConstants",
    "EquationOfState",
    "Equilibrium",
    "Phonons",
    "Quantity",
    "Vacancy",
    "Validation",
    "Verdict",
    "validate",
]
