"""Fine-tune pretrained interatomic potentials inside ASE without forgetting the periodic table."""

__version__ = "0.1.0"
