"""Pretrained and fine-tuned interatomic potentials behind one interface."""

from ase_finetune.potentials.base import Potential, Prediction
from ase_finetune.potentials.catalog import ModelInfo
from ase_finetune.potentials.pair import MorsePotential
from ase_finetune.potentials.registry import list_models, load_potential
from ase_finetune.potentials.storage import save_potential

__all__ = [
    "ModelInfo",
    "MorsePotential",
    "Potential",
    "Prediction",
    "list_models",
    "load_potential",
    "save_potential",
]
