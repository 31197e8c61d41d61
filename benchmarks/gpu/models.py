"""Models, structures and options that the stages share."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read

from ase_finetune import FinetunedCalculator
from ase_finetune.data import read_frames
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials import MorsePotential, Potential, load_potential
from ase_finetune.potentials.mace import MACEPotential
from benchmarks.fisher import noisy
from benchmarks.inputs import LIPS, random_mace, silicon, small_crystals

#: Of a MACE with random weights: sulfides and silicon.
MACE_ELEMENTS = (3, 14, 15, 16)

#: Cubic cells of silicon with so many atoms.
CELLS = {
    8: (1, 1, 1),
    64: (2, 2, 2),
    216: (3, 3, 3),
    512: (4, 4, 4),
    1000: (5, 5, 5),
    4096: (8, 8, 8),
    10648: (11, 11, 11),
    20384: (13, 14, 14),
}


def accelerations(on_gpu: bool) -> dict[str, dict[str, str]]:
    """Ways to measure what takes ``accelerate``: what is added to a row's name, and the options.

    On a CPU there is nothing to choose.
    """
    if not on_gpu:
        return {"": {}}
    return {f" accelerate={how}": {"accelerate": how} for how in ("graph", "none")}


def potential(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Potential:
    """A potential of its own: a pretrained one by name, "mace" or "tiny-mace" (random weights), "pair" (Morse)."""
    if name == "pair":
        # Silicon near a minimum, and another element.
        wells = {"depth": [0.8, 1.0], "width": [1.6, 1.5], "distance": [2.0, 2.4], "shift": [-1.0, -2.0]}
        return MorsePotential([8, 14], **wells, cutoff=4.0).to(device, dtype)
    if name in ("mace", "tiny-mace"):
        return MACEPotential(copy.deepcopy(native_mace(name == "tiny-mace"))).to(device, dtype)
    return load_potential(name, device=device, dtype=dtype)[0]


@functools.cache
def shared(name: str, device: torch.device) -> Potential:
    """A potential in float32 that is loaded once in a process; its weights are not to be changed."""
    return potential(name, device)


@functools.cache
def native_mace(tiny: bool) -> torch.nn.Module:
    """A native MACE of the size of the small public ones, or a tiny one; not to be changed."""
    return random_mace(MACE_ELEMENTS, tiny=tiny)


def crystal(atoms: int) -> Atoms:
    """Silicon with displaced atoms; their number is one of :data:`CELLS`."""
    return silicon(*CELLS[atoms])


def structures(model: Potential, largest: int) -> list[Atoms]:
    """Silicon, small crystals and a sulfide of 83 atoms, as far as the model knows them; ``largest`` in atoms."""
    known = set(model.numbers)
    crystals = [a for a in small_crystals(300, 8) if set(a.numbers) <= known][:4]
    candidates = [crystal(8), silicon(1, 1, 2, seed=2), *crystals, read(LIPS, index=0)]
    return [plain(a) for a in candidates if len(a) <= largest and set(a.numbers) <= known]


def plain(atoms: Atoms) -> Atoms:
    """A copy without calculator and labels."""
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell[:], pbc=atoms.pbc)


def labelled(reference: Potential, chosen: Sequence[Atoms]) -> list[Atoms]:
    """Copies with labels: a model's own, and errors as of a pretrained model (else residuals would be zero)."""
    results = FinetunedCalculator(reference, device=str(reference.device)).calculate_many(chosen)
    random = np.random.default_rng(0)
    return [noisy(plain(atoms), result, random) for atoms, result in zip(chosen, results, strict=True)]


def graphs(model: Potential, frames: Sequence[Atoms]) -> list[AtomGraph]:
    """Labelled graphs."""
    return list(read_frames(list(frames)).graphs(model.cutoff))


def relative(found: Any, wanted: Any) -> float:
    """Norm of the difference over the norm of what is wanted."""
    found, wanted = (np.asarray(value, dtype=float) for value in (found, wanted))
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-300))
