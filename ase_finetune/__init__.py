"""Fine-tune pretrained interatomic potentials inside ASE without forgetting the periodic table."""

from ase_finetune.ase_plugin import register
from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.errors import FinetuneError
from ase_finetune.finetuning import FinetuneConfig, finetune
from ase_finetune.losses import Loss
from ase_finetune.potentials import list_models
from ase_finetune.version import __version__

__all__ = ["FinetuneConfig", "FinetuneError", "FinetunedCalculator", "Loss", "__version__", "finetune", "list_models"]

register()  # get_calculator_class("finetuned")
