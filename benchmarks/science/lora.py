"""Low-rank adaptation (LoRA) of MACE, with mace-torch's own layers. sevenn has none.

Hu et al., arXiv 2106.09685. The symmetric contractions and the products with the element, which hold most of the
parameters of a MACE, are not linear layers: they keep their values.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.data import FrameSet
from ase_finetune.potentials import Potential, load_potential
from ase_finetune.potentials.imports import import_backend
from ase_finetune.potentials.mace import MACEPotential

_INSTALL = "'ase_finetune[mace]'"


def finetune_with_lora(
    model: str, train: FrameSet, lora: Mapping[str, Any], seed: int = 0, **options: Any
) -> FinetunedCalculator:
    """As ``finetune()``, but what is trained are low-rank terms beside the linear layers, merged into them at the end.

    There are no checkpoints: the package has no description of a MACE with such terms, only of the merged one.

    Parameters
    ----------
    model
        A MACE.
    train
        Frames.
    lora
        ``rank`` of the terms, and ``alpha``: they are multiplied by alpha / rank.
    seed
        Of the run, and of the random half of the terms (the other half is zero).
    **options
        Of ``finetune()``.
    """
    potential, _ = load_potential(model)
    inject(potential, rank=int(lora["rank"]), alpha=float(lora["alpha"]), seed=seed)
    calculator = finetune(potential, train, seed=seed, **options)
    merge(calculator.potential)
    return calculator


def inject(potential: Potential, rank: int, alpha: float, seed: int) -> None:
    """Put low-rank terms beside the linear layers of a MACE, which alone train from now on.

    Raises
    ------
    SystemExit
        If it is not a MACE.
    """
    if not isinstance(potential, MACEPotential):
        raise SystemExit(f"LoRA is there for MACE alone, not for {potential.backend}: take the case out of the study")
    layers = import_backend("mace.modules.lora", _INSTALL)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e3nn's use of torch.jit
        torch.manual_seed(seed)
        layers.inject_lora(potential.native, rank=rank, alpha=alpha)


def merge(potential: Potential) -> None:
    """Add the terms to the layers beside which they stand; the potential has its own parameters again."""
    import_backend("mace.modules.lora", _INSTALL).merge_lora_weights(potential.native)
