"""Whether time grows with the work alone: evaluation of larger structures, training on more of them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from ase_finetune import FinetunedCalculator, finetune
from benchmarks.inputs import MODEL, silicon
from benchmarks.paired import Comparison, alternate, seconds
from benchmarks.suite import Missing, Row, Setting, Target
from tests.helpers import build_sevennet

TARGETS = {"flat within 15 %": Target(cpu=1.15, gpu=1.15)}

#: Cubic cells of eight atoms.
CELLS = {216: (3, 3, 3), 512: (4, 4, 4), 1000: (5, 5, 5), 2000: (5, 5, 10)}
FRAMES = (1000, 5000)
FEWEST = 100


def moving(atoms: Atoms, calculator: FinetunedCalculator) -> Callable[[], None]:
    """A function that moves the atoms a little, as MD does, and evaluates them."""
    copy, random = atoms.copy(), np.random.default_rng(0)

    def step() -> None:
        copy.positions += random.normal(scale=0.005, size=copy.positions.shape)
        calculator.calculate(copy, ["energy", "forces", "stress"])

    return step


def evaluation(setting: Setting) -> Iterator[Row]:
    """Time per atom, against 64 atoms. Each size has a calculator of its own, as a script would have."""
    small = silicon(*setting.size((1, 1, 1), (2, 2, 2)))
    sizes = setting.size({16: (1, 1, 2)}, CELLS)
    for cells in sizes.values():
        large = silicon(*cells)
        works = [moving(atoms, FinetunedCalculator(MODEL, device=str(setting.device))) for atoms in (large, small)]
        ours, peer = (
            functools.partial(_per_atom, work, len(atoms)) for work, atoms in zip(works, (large, small), strict=True)
        )
        measured = alternate(ours, peer, **setting.times(3))
        target = TARGETS["flat within 15 %"].on(setting)
        yield Row(f"evaluation, {len(large)} Si atoms", f"{len(small)} atoms", measured, target, "ms/atom", MODEL)


def _per_atom(work: Callable[[], None], count: int) -> float:
    return 1e3 * seconds(work) / count


def labelled(count: int) -> list[Atoms]:
    """Cells of two atoms with made-up labels."""
    random = np.random.default_rng(0)
    structures = []
    for _ in range(count):
        atoms = bulk("Si")
        atoms.positions += random.normal(scale=0.05, size=(2, 3))
        # Of the order a model of this size predicts: large errors would only bring warnings.
        forces = random.normal(scale=0.1, size=(2, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-2.0 + 0.05 * random.normal(), forces=forces)
        structures.append(atoms)
    return structures


def training(setting: Setting) -> Iterator[Row]:
    """Time per structure of a whole `finetune`, and of its epoch alone, against few structures."""
    potential = build_sevennet(numbers=[14]).to(setting.device)
    few, larger = setting.size((20, (40,)), (FEWEST, FRAMES))

    def once(count: int) -> tuple[float, float]:
        structures = labelled(count)
        start = time.perf_counter()
        calculator = finetune(
            potential, structures, None, method="naive", replay=None, epochs=1, batch_size=10, verbose=False
        )
        return 1e3 * (time.perf_counter() - start) / count, 1e3 * calculator.history[-1]["seconds"] / count

    repeats = setting.times(3)["repeats"]
    once(few)
    for count in larger:
        turns = [(once(count), once(few)) for _ in range(repeats)]
        many, fewest = zip(*turns, strict=True)
        for index, what in enumerate(("finetune()", "its epoch")):
            measured = Comparison([run[index] for run in many], [run[index] for run in fewest])
            name, against = f"{what}, {count} structures of 2 atoms", f"{few} structures"
            target = TARGETS["flat within 15 %"].on(setting)
            notes = "a tiny SevenNet, so that what surrounds the model is seen"
            yield Row(name, against, measured, target, "ms/structure", notes)


def run(setting: Setting) -> Iterator[Row | Missing]:
    yield from evaluation(setting)
    yield from training(setting)
