"""Small models and structures for the tests: they build in well under a second."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from ase_finetune.potentials.imports import import_backend
from ase_finetune.potentials.sevennet import SevenNetPotential

HAS_MACE = importlib.util.find_spec("mace") is not None
HAS_SEVENN = importlib.util.find_spec("sevenn") is not None

ELEMENTS = (1, 3, 6, 8, 14, 15, 16)


def build_mace(seed: int = 0, **options: Any) -> torch.nn.Module:
    """A native MACE module for H, C, O and Si with a 4 Å cutoff."""
    modules = import_backend("mace.modules", "mace-torch")
    o3 = import_backend("e3nn.o3", "e3nn")
    scale_shift = options.pop("scale_shift", True)
    heads = options.get("heads", ["Default"])
    config: dict[str, Any] = {
        "r_max": 4.0,
        "num_bessel": 4,
        "num_polynomial_cutoff": 5,
        "max_ell": 1,
        "interaction_cls": modules.RealAgnosticResidualInteractionBlock,
        "interaction_cls_first": modules.RealAgnosticResidualInteractionBlock,
        "num_interactions": 2,
        "num_elements": 4,
        "hidden_irreps": "4x0e+4x1o",
        "MLP_irreps": "4x0e",
        "atomic_energies": np.linspace(-1.3, -0.2, 4 * len(heads)).reshape(len(heads), 4),
        "avg_num_neighbors": 7.3,
        "atomic_numbers": [1, 6, 8, 14],
        "correlation": 2,
        "gate": torch.nn.functional.silu,
        "radial_MLP": [8, 8],
        "heads": heads,
    }
    config |= options
    for name in ("interaction_cls", "interaction_cls_first"):
        if isinstance(config[name], str):
            config[name] = modules.interaction_classes[config[name]]
    for name in ("hidden_irreps", "MLP_irreps", "edge_irreps"):
        if config.get(name) is not None:
            config[name] = o3.Irreps(config[name])
    build = modules.MACE
    if scale_shift:
        build = modules.ScaleShiftMACE
        config["atomic_inter_scale"] = [0.9 + 0.1 * k for k in range(len(heads))]
        config["atomic_inter_shift"] = [0.1 - 0.2 * k for k in range(len(heads))]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e3nn's use of torch.jit
        torch.manual_seed(seed)
        return build(**config)


def build_sevennet(seed: int = 0, **config: Any) -> SevenNetPotential:
    """A small SevenNet for :data:`ELEMENTS` with a 4 Å cutoff."""
    numbers = sorted(config.pop("numbers", ELEMENTS))
    architecture: dict[str, Any] = {
        "cutoff": 4.0,
        "channel": 4,
        "lmax": 1,
        "num_convolution_layer": 2,
        "weight_nn_hidden_neurons": [8, 8],
        "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 4},
        "cutoff_function": {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 6},
        "is_parity": False,
        "version": "0.10.4",
        "shift": -1.0,
        "scale": 0.8,
        "conv_denominator": 5.0,
        "_number_of_species": len(numbers),
        "_type_map": [[z, index] for index, z in enumerate(numbers)],
        "_normalize_sph": True,
        "train_shift_scale": False,
        "train_denominator": False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SevenNetPotential.from_architecture(architecture | config)


def structures() -> dict[str, Atoms]:
    """Bulk, slab, molecule, a cell with one atom, a skewed cell and an isolated atom (H, C, O, Si)."""
    rng = np.random.default_rng(0)
    crystal = bulk("Si", cubic=True)
    slab = fcc111("Si", (2, 2, 2), a=4.2, vacuum=6.0)
    skewed = Atoms(
        "SiOCH", scaled_positions=rng.random((4, 3)), cell=[[4, 0, 0], [3.0, 4, 0], [-2.0, 1.5, 4]], pbc=True
    )
    ethanol = molecule("CH3CH2OH")
    one_atom = Atoms("Si", cell=[[0, 1.9, 1.9], [1.9, 0, 1.9], [1.9, 1.9, 0.1]], pbc=True)
    moved = {"bulk": crystal, "slab": slab, "molecule": ethanol}
    for atoms in moved.values():
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    return moved | {"one_atom": one_atom, "skewed": skewed, "isolated": Atoms("O", positions=[(0, 0, 0)])}
