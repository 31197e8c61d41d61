"""Structures of very different sizes: a training step over a long tail against as many edges in equal structures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ase.build import bulk

from ase_finetune.continual import pseudo_label
from ase_finetune.data import FrameSet
from ase_finetune.graphs import AtomGraph
from ase_finetune.losses import Loss
from ase_finetune.potentials import Potential, load_potential
from benchmarks.inputs import MODEL, train, trainer
from benchmarks.paired import alternate, seconds
from benchmarks.suite import Missing, Row, Setting, Target
from benchmarks.training_step import naive

TARGETS = {"a step": Target(cpu=1.2, gpu=1.2)}

#: Repeats of silicon's two atoms; 2 to 200 atoms, each size about half as often as that of half of it.
TAIL = [(1, 1, 1)] * 14 + [(1, 1, 2)] * 8 + [(1, 2, 2)] * 4 + [(2, 2, 2)] * 2 + [(2, 2, 4), (2, 4, 4), (5, 5, 4)]
EQUAL = (2, 2, 2)


def silicon(potential: Potential, repeats: Sequence[tuple[int, int, int]]) -> list[AtomGraph]:
    """Slightly displaced cells, all with the same number of edges per atom, labelled by the model itself."""
    structures = []
    for index, times in enumerate(repeats):
        atoms = bulk("Si") * times
        atoms.rattle(0.01, seed=index)
        structures.append(atoms)
    return pseudo_label(potential, FrameSet.from_atoms(structures, name="silicon").graphs(potential.cutoff))


def run(setting: Setting) -> Iterator[Row | Missing]:
    potential, _ = load_potential(MODEL, device=setting.device)
    tail = silicon(potential, setting.size([(1, 1, 1), (1, 1, 3)], TAIL))
    atoms = sum(len(graph.numbers) for graph in tail)
    each = setting.size((1, 1, 2), EQUAL)
    equal = silicon(potential, [each] * round(atoms / (2 * each[0] * each[1] * each[2])))
    edges = [sum(graph.num_edges for graph in graphs) for graphs in (tail, equal)]
    ours, peer = (trainer(potential, graphs, naive(Loss(), len(graphs))) for graphs in (tail, equal))
    # Not exactly as many edges: what is compared is the time of an edge.
    measured = alternate(
        lambda: 1e3 * seconds(lambda: train(ours, [list(range(len(tail)))])) / edges[0],
        lambda: 1e3 * seconds(lambda: train(peer, [list(range(len(equal)))])) / edges[1],
        **setting.times(3),
    )
    sizes = sorted(len(graph.numbers) for graph in tail)
    name = f"a step on {len(tail)} structures of {sizes[0]}-{sizes[-1]} atoms"
    against = f"{len(equal)} of {len(equal[0].numbers)} atoms"
    notes = f"{edges[0]} and {edges[1]} edges, time per edge"
    yield Row(name, against, measured, TARGETS["a step"].on(setting), "ms/edge", notes)
