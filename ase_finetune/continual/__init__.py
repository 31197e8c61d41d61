"""What keeps a potential from forgetting: Fisher information, elastic weight consolidation, replay."""

from ase_finetune.continual.ewc import EWCPenalty
from ase_finetune.continual.fisher import FisherInformation, empirical_fisher, gaussian_fisher
from ase_finetune.continual.fisher_files import load_anchor, load_fisher, save_fisher
from ase_finetune.continual.replay import pseudo_label

__all__ = [
    "EWCPenalty",
    "FisherInformation",
    "empirical_fisher",
    "gaussian_fisher",
    "load_anchor",
    "load_fisher",
    "pseudo_label",
    "save_fisher",
]
