"""The first evaluation of a model, which rounds differently from all others."""

from __future__ import annotations

import torch
from ase import Atoms

from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials.base import Potential


def warm_up(potential: Potential) -> None:
    """Evaluate two atoms, so that whatever comes next is computed as it always will be.

    TorchScript, of which e3nn makes its code, looks at the first evaluation of every copy of a module and reorders
    operations from the second one on, which changes the last digits. A run that is resumed would otherwise have its
    first evaluation elsewhere than one that was not interrupted.
    """
    number = potential.numbers[0]
    pair = Atoms([number, number], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.6 * potential.cutoff]])
    graph = AtomGraph.from_atoms(pair, potential.cutoff).to(potential.device)
    with torch.no_grad():
        potential.predict(graph)
