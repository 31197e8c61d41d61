"""MACE models described in JSON, and built from such descriptions."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from ase_finetune.errors import CheckpointError
from ase_finetune.potentials.base import plain_values
from ase_finetune.potentials.imports import import_backend

INSTALL = "'ase_finetune[mace]'"

_IRREPS = ("hidden_irreps", "MLP_irreps", "edge_irreps")


def describe(native: nn.Module) -> dict[str, Any]:
    """Arguments of the module's constructor, with names instead of classes and functions.

    Raises
    ------
    CheckpointError
        If the model has parts for which MACE has no name.
    """
    modules = import_backend("mace.modules", INSTALL)
    config = _extract(native)
    for name in ("cueq_config", "oeq_config"):
        converted = config.pop(name, None)
        if converted is not None and getattr(converted, "enabled", True):
            raise CheckpointError(f"this MACE model was converted for a GPU library ({name}); save the unconverted one")
    for name in ("interaction_cls", "interaction_cls_first"):
        config[name] = _name_of(config[name], modules.interaction_classes, name)
    config["readout_cls"] = _name_of(config["readout_cls"], modules.readout_classes, "readout_cls")
    config["gate"] = _name_of(config["gate"], modules.gate_dict, "gate")
    for name in _IRREPS:
        config[name] = None if config[name] is None else str(config[name])
    return {"class": type(native).__name__} | {name: plain_values(value) for name, value in config.items()}


def build(architecture: dict[str, Any]) -> nn.Module:
    """The module of a description, with initial weights in torch's default dtype."""
    modules = import_backend("mace.modules", INSTALL)
    o3 = import_backend("e3nn.o3", INSTALL)
    config = copy.deepcopy(architecture)
    model_class = {"MACE": modules.MACE, "ScaleShiftMACE": modules.ScaleShiftMACE}[config.pop("class")]
    for name in _IRREPS:
        config[name] = None if config[name] is None else o3.Irreps(config[name])
    for name in ("interaction_cls", "interaction_cls_first"):
        config[name] = modules.interaction_classes[config[name]]
    config["readout_cls"] = modules.readout_classes[config["readout_cls"]]
    config["gate"] = modules.gate_dict[config["gate"]]
    config["atomic_energies"] = np.array(config["atomic_energies"])
    native: nn.Module = model_class(**config)
    return native


def _extract(native: nn.Module) -> dict[str, Any]:
    """MACE's own description of a model, completed where it takes the first layer for all."""
    scripts_utils = import_backend("mace.tools.scripts_utils", INSTALL)
    model: Any = native
    described = native if hasattr(native, "scale_shift") else _ScaleShiftView(native)
    try:
        config: dict[str, Any] = scripts_utils.extract_config_mace_model(described)
        correlation = [_correlation(product) for product in model.products]
    except AttributeError as error:
        raise CheckpointError(
            f"MACE cannot describe this model ({error}); use export() to keep it as a .model file"
        ) from error
    if described is not native:
        del config["atomic_inter_scale"], config["atomic_inter_shift"]
    last = model.products[-1].linear.irreps_out
    config |= {
        "correlation": correlation,
        "num_polynomial_cutoff": int(config["num_polynomial_cutoff"]),
        "avg_num_neighbors": float(config["avg_num_neighbors"]),
        "keep_last_layer_irreps": len(correlation) > 1 and str(last) != str(config["hidden_irreps"][0]),
        "heads": list(config["heads"]),
    }
    return config


class _ScaleShiftView:
    """A plain MACE in the guise that ``extract_config_mace_model`` accepts (it asks for the name)."""

    def __init__(self, native: nn.Module) -> None:
        self._native = native
        self.scale_shift = SimpleNamespace(scale=torch.ones(1), shift=torch.zeros(1))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)


_ScaleShiftView.__name__ = "ScaleShiftMACE"


def _correlation(product: Any) -> int:
    return len(product.symmetric_contractions.contractions[0].weights) + 1


def _name_of(value: Any, names: dict[str, Any], what: str) -> str:
    for name, known in names.items():
        if known is value:
            return name
    raise CheckpointError(
        f"MACE has no name for this model's {what} {value!r}; use export() to keep it as a .model file"
    )
