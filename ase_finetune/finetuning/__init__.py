"""Fine-tuning: configuration, training loop and results."""

from ase_finetune.finetuning.api import finetune
from ase_finetune.finetuning.config import FinetuneConfig
from ase_finetune.finetuning.fisher import fisher_information

__all__ = ["FinetuneConfig", "finetune", "fisher_information"]
