"""How the end of a relaxation depends on the potential: a loss on the final structure, its gradient, one picture.

python examples/differentiable_relaxation.py [--short] [--output runs/differentiable]

NaBeP starts as a guess from a prototype and is relaxed, cell and positions, with SevenNet-0. The loss is its distance
from the structure that DFT finds. Its gradient goes back through every step of FIRE, to the parameters of the network
and to the starting positions.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # pictures go to files, on machines without a screen too
import numpy as np
import torch
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.io import read
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from ase_finetune import FinetunedCalculator
from ase_finetune.optimize import FIRE
from ase_finetune.trajectories import StructureLoss, Structures, final_structure

DATA = Path(__file__).parent / "data"
LOSS = StructureLoss(rmsd=1.0, strain=1.0)  # per Å, and per unit of strain
EXAMPLE = 6  # NaBeP, the pair that moves most and does not leave its basin


@dataclasses.dataclass
class Recorded:
    """A relaxation: its optimizer, the loss that carries the gradient, and what was seen at every step."""

    optimizer: FIRE
    loss: torch.Tensor
    energies: list[float]  # eV/atom
    forces: list[float]  # the largest one, on atoms and cell, eV/Å
    distances: list[dict[str, float]]  # rmsd in Å, strain


def relax(calculator: FinetunedCalculator, start: Atoms, target: Atoms, steps: int) -> Recorded:
    """Relax a copy of ``start`` and measure how far from ``target`` it ends."""
    atoms = start.copy()
    atoms.calc = calculator
    wanted = Structures.from_atoms([target], device=calculator.potential.device)
    moving = FrechetCellFilter(atoms)
    opt = FIRE(moving, logfile=None, differentiable=True)
    energies, forces, distances = [], [], []

    def watch() -> None:
        """An observer, as with any optimizer of ASE; what it asks for has been computed already."""
        energies.append(atoms.get_potential_energy() / len(atoms))
        forces.append(float(np.linalg.norm(moving.get_forces(), axis=1).max()))
        now = Structures.from_atoms([atoms], device=calculator.potential.device)
        distances.append({name: float(value) for name, value in LOSS.terms(now, wanted).items()})

    opt.attach(watch)
    opt.run(fmax=0.02, steps=steps)
    # opt.positions and opt.cell carry the gradient; final_structure makes of them what losses take.
    return Recorded(opt, LOSS(final_structure(opt), wanted).sum(), energies, forces, distances)


def tell(calculator: FinetunedCalculator, relaxed: Recorded, symbols: list[str]) -> None:
    """Which parameters and which atoms the loss depends on most."""
    parameters = [(name, p) for name, p in calculator.potential.named_parameters() if p.grad is not None]
    parameters.sort(key=lambda item: -float(item[1].grad.norm()))
    print(f"gradient by {sum(p.numel() for _, p in parameters)} parameters; the largest norms:")
    for name, parameter in parameters[:4]:
        print(f"  {float(parameter.grad.norm()):10.3g}  {name}")
    print("gradient by the starting positions, 1/Å (small: where it ends hardly depends on where it starts):")
    for symbol, row in zip(symbols, relaxed.optimizer.start_positions.grad.tolist(), strict=True):
        print(f"  {symbol:3s}" + "".join(f"{value:10.4f}" for value in row))


def go_downhill(calculator: FinetunedCalculator, loss: float, share: float = 0.02) -> float:
    """Change the parameters against the gradient, so that the loss should fall by ``share``; returns by how much."""
    parameters = [p for p in calculator.potential.parameters() if p.grad is not None]
    slope = sum(float(p.grad.double().square().sum()) for p in parameters)
    with torch.no_grad():
        for parameter in parameters:
            parameter -= share * loss / slope * parameter.grad
    return share * loss


def draw(relaxed: Recorded, path: Path) -> None:
    """Energy and force, distance from the target, and the norm of the gradient, step by step."""
    figure, panels = plt.subplots(3, 1, figsize=(6.5, 7.0), sharex=True, layout="constrained")
    steps = np.arange(len(relaxed.forces))
    above = 1e3 * (np.array(relaxed.energies) - relaxed.energies[-1])
    panels[0].plot(steps, above, "o-", color="C0", markersize=3)
    panels[0].set_ylabel("energy above the end,\nmeV/atom", color="C0")
    forces = panels[0].twinx()
    forces.plot(steps, relaxed.forces, "s-", color="C1", markersize=3)
    forces.set_ylabel("largest force,\neV/Å", color="C1")
    forces.set_ylim(bottom=0)
    rmsd, strain = ([values[name] for values in relaxed.distances] for name in ("rmsd", "strain"))
    panels[1].plot(steps, rmsd, "o-", color="C2", markersize=3, label="RMSD, Å")
    panels[1].plot(steps, strain, "s-", color="C4", markersize=3, label="cell strain")
    panels[1].set_ylim(bottom=0)
    panels[1].set_ylabel("distance from\nthe DFT structure")
    panels[1].legend(frameon=False)
    norms = relaxed.optimizer.path.gradient_norms  # of the loss, by the coordinates before each step
    panels[2].plot(np.arange(len(norms)), norms, "o-", color="C3", markersize=3)
    panels[2].set_ylabel("norm of the gradient\nby the coordinates, 1/Å")
    panels[2].set_ylim(bottom=0)
    panels[2].set_xlabel("step of FIRE")
    panels[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_title("Relaxation of NaBeP with SevenNet-0, and the gradient back through it", fontsize=10)
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.align_ylabels(panels)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(calculator: FinetunedCalculator, output: str | Path = "runs/differentiable", steps: int = 35) -> float:
    """Relax, differentiate, draw, and try the gradient; returns the loss."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    start, target = (read(DATA / f"crystal_pairs_{end}.extxyz", index=EXAMPLE) for end in ("initial", "relaxed"))
    relaxed = relax(calculator, start, target, steps)
    relaxed.loss.backward()
    loss = float(relaxed.loss.detach())
    first, last = relaxed.distances[0], relaxed.distances[-1]
    print(
        f"{relaxed.optimizer.nsteps} steps: RMSD {first['rmsd']:.3f} -> {last['rmsd']:.3f} Å, "
        f"strain {first['strain']:.3f} -> {last['strain']:.3f}, loss {loss:.4f}"
    )
    tell(calculator, relaxed, start.get_chemical_symbols())
    draw(relaxed, folder / "relaxation.png")
    print(f"picture in {folder / 'relaxation.png'}")
    expected = go_downhill(calculator, loss)
    gained = loss - float(relax(calculator, start, target, steps).loss.detach())
    print(f"a small step of the parameters against the gradient: loss lower by {gained:.5f}, expected {expected:.5f}")
    return loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="three steps only")
    parser.add_argument("--output", default="runs/differentiable", help="folder for the picture")
    arguments = parser.parse_args()
    main(FinetunedCalculator("7net-0"), arguments.output, steps=3 if arguments.short else 35)
