"""Fine-tuning: configuration, training loop and results."""

from ase_finetune.finetuning.api import finetune
from ase_finetune.finetuning.config import FinetuneConfig

__all__ = ["FinetuneConfig", "finetune"]
