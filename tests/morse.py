"""A world of Morse crystals: a pretrained potential that is almost right for silicon, and the right one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from ase_finetune import FinetunedCalculator
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials import MorsePotential
from ase_finetune.potentials.base import Potential

PRETRAINED: dict[str, Any] = {
    "depth": [0.8, 1.0],
    "width": [1.6, 1.5],
    "distance": [2.0, 2.4],
    "shift": [-1.0, -2.0],
    "cutoff": 4.0,
}
TRUE = PRETRAINED | {"depth": [0.8, 1.3], "width": [1.6, 1.7], "distance": [2.0, 2.3]}


def pretrained() -> MorsePotential:
    """What fine-tuning starts from: O and Si."""
    return MorsePotential([8, 14], **PRETRAINED)


def truth() -> MorsePotential:
    """What labels the frames: another silicon."""
    return MorsePotential([8, 14], **TRUE)


def silicon(count: int, seed: int, a: float = 5.43) -> list[Atoms]:
    """Rattled cubic cells of 8 atoms, strained by 2 per cent."""
    rng = np.random.default_rng(seed)
    structures = []
    for _ in range(count):
        atoms = bulk("Si", cubic=True, a=a * (1 + 0.02 * rng.normal()))
        atoms.positions += rng.normal(scale=0.15, size=(8, 3))
        structures.append(atoms)
    return structures


def oxide(count: int, seed: int) -> list[Atoms]:
    """Old material: Si4O4, whose pairs share the parameters of silicon."""
    structures = silicon(count, seed, a=4.9)
    for atoms in structures:
        atoms.symbols = "SiOSiOSiOSiO"
    return structures


def attach(atoms: Atoms, **labels: Any) -> Atoms:
    """A copy with labels, as ASE's readers give them."""
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, **labels)
    return copy


def labelled(
    structures: Sequence[Atoms],
    potential: Potential | None = None,
    labels: Sequence[str] = ("energy", "forces", "stress"),
) -> list[Atoms]:
    """Copies with a potential's labels (the true ones when it is not given)."""
    results = FinetunedCalculator(potential or truth(), device="cpu").calculate_many(structures)
    return [
        attach(atoms, **{name: result[name] for name in labels if name in result})
        for atoms, result in zip(structures, results, strict=True)
    ]


def graphs(
    structures: Sequence[Atoms], potential: Potential, labels: Sequence[str] = ("energy", "forces", "stress")
) -> list[AtomGraph]:
    """Graphs in the potential's dtype, with the labels that the structures carry."""
    made = []
    for atoms in structures:
        graph = AtomGraph.from_atoms(atoms, potential.cutoff)
        found = {} if atoms.calc is None else atoms.calc.results
        made.append(graph.with_labels(**{name: found[name] for name in labels if name in found}) if found else graph)
    return made


def weights(potential: Potential) -> dict[str, torch.Tensor]:
    """A copy of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in potential.native_parameters()}


def same_weights(one: Potential, two: Potential) -> bool:
    """Whether all parameters agree bit for bit."""
    ours, theirs = weights(one), weights(two)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
