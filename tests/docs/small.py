"""A small world under the names of the pages: quick potentials for pretrained models, and small files.

Only the size of things is another: every line of the pages runs through the package itself.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import torch
import yaml
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import covalent_radii
from ase.io import write

from ase_finetune import FinetunedCalculator
from ase_finetune.data import embedded_replay
from ase_finetune.optimize import relax
from ase_finetune.potentials import ModelInfo, MorsePotential, registry

ELEMENTS = tuple(range(1, 95))


def model(numbers: tuple[int, ...] = ELEMENTS, depth: float = 0.3, stretch: float = 1.1) -> MorsePotential:
    """Stands in the place of a pretrained model that knows these elements."""
    numbers = tuple(sorted(numbers))
    distance = [2 * stretch * float(covalent_radii[z]) for z in numbers]
    return MorsePotential(numbers, depth=depth, width=1.4, distance=distance, shift=-1.0, cutoff=4.5)


def load_named(info: ModelInfo, head: str | None, trust_pickle: bool) -> MorsePotential:
    """As the function of the registry, whatever the name."""
    del head, trust_pickle
    return model(info.elements or ELEMENTS)


def few_embedded(count: int | None = None) -> list[Atoms]:
    """Eight of the embedded structures instead of all."""
    return embedded_replay(min(count or 8, 8))


def truth() -> FinetunedCalculator:
    """The right potential, which labels the frames."""
    return FinetunedCalculator(model(depth=0.36, stretch=1.06), device="cpu", dtype="float32")


def crystals(count: int, seed: int = 0, symbols: str = "Li4P2S2", a: float = 4.9) -> list[Atoms]:
    """Rattled cells of eight atoms, each a trajectory of its own."""
    rng = np.random.default_rng(seed)
    sites = np.array([[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0], [1, 1, 1], [1, 3, 3], [3, 1, 3], [3, 3, 1]]) / 4
    found = []
    for number in range(count):
        atoms = Atoms(symbols, scaled_positions=sites, cell=[a * (1 + 0.02 * rng.normal())] * 3, pbc=True)
        atoms.positions += rng.normal(scale=0.12, size=(8, 3))
        atoms.info["run"] = f"run-{seed}-{number // 2}"
        found.append(atoms)
    return found


def molecules(count: int, seed: int = 0) -> list[Atoms]:
    """Rattled organic molecules without a cell."""
    rng = np.random.default_rng(seed)
    found = []
    for number, name in zip(range(count), itertools.cycle(["CH3OH", "CH4", "H2O", "CH3CH2OH"]), strict=False):
        atoms = molecule(name)
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.info["run"] = f"{name}-{seed}-{number // 4}"
        found.append(atoms)
    return found


def labelled(structures: list[Atoms]) -> list[Atoms]:
    """Copies with the labels of the right potential."""
    copies = [atoms.copy() for atoms in structures]
    for copy, results in zip(copies, truth().calculate_many(copies), strict=True):
        kept = {name: results[name] for name in ("energy", "forces", "stress") if name in results}
        copy.calc = SinglePointCalculator(copy, **kept)
    return copies


def pairs(count: int) -> tuple[list[Atoms], list[Atoms]]:
    """Structures before and after a relaxation with the right potential."""
    initial = [
        atoms
        for seed, symbols in enumerate(["Na4S4", "Na4P2S2", "Na4Se4", "Na4P4"])
        for atoms in crystals(-(-count // 4), seed, symbols)
    ][:count]
    for number, atoms in enumerate(initial):
        atoms.info = {"structure_id": f"pair-{number}"}
    relaxed = [result.atoms for result in relax(initial, truth(), cell=True, fmax=0.05, steps=300)]
    for before, after in zip(initial, relaxed, strict=True):
        after.info = dict(before.info)
    return initial, relaxed


def published(folder: Path) -> None:
    """Fisher information and anchor as published with reEWC: dictionaries of tensors by parameter name."""
    info = registry.find_model("7net-0")
    assert info is not None
    parameters = {name: value.detach() for name, value in load_named(info, None, False).native_parameters()}
    torch.save(parameters, folder / "opt_params_sevenn.pt")
    torch.save({name: torch.full_like(value, 1e-6) for name, value in parameters.items()}, folder / "fisher_sevenn.pt")


def write_outcar(path: Path, frames: list[Atoms]) -> None:
    """What ASE reads of an OUTCAR of an MD run."""
    first = frames[0]
    symbols = list(dict.fromkeys(first.get_chemical_symbols()))
    lines = [f" POTCAR:    PAW_PBE {symbol} 01Jan2000" for _ in range(2) for symbol in symbols]
    counts = " ".join(str(first.get_chemical_symbols().count(symbol)) for symbol in symbols)
    lines += [f"   ions per type =   {counts}", "   ISPIN  =      1    spin polarized calculation?"]
    lines += [
        "   k-points           NKPTS =      1   k-points in BZ     NKDIM =      1   number of bands    NBANDS=     9"
    ]
    lines += [" k-points in reciprocal lattice and weights: Gamma", "  0.0 0.0 0.0 1.0"]
    for number, atoms in enumerate(frames, 1):
        xx, yy, zz, yz, xz, xy = -atoms.get_stress() / units.GPa * 10  # kbar, VASP's sign
        lines.append(f"--------------------------------------- Iteration {number:6d}(   1)  --------------------")
        lines.append(f"  in kB  {xx:12.5f} {yy:12.5f} {zz:12.5f} {xy:12.5f} {yz:12.5f} {xz:12.5f}")
        lines.append("      direct lattice vectors                 reciprocal lattice vectors")
        lines += [" ".join(f"{x:14.9f}" for x in vector) + "  0.0 0.0 0.0" for vector in atoms.cell]
        lines += [" POSITION                                       TOTAL-FORCE (eV/Angst)", " " + "-" * 83]
        for position, force in zip(atoms.positions, atoms.get_forces(), strict=True):
            lines.append(" ".join(f"{x:14.8f}" for x in (*position, *force)))
        lines += [" " + "-" * 83, "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)", " " + "-" * 30]
        energy = atoms.get_potential_energy()
        lines.append(f"  free  energy   TOTEN  = {energy:18.8f} eV")
        lines += ["", f"  energy  without entropy= {energy:18.8f}  energy(sigma->0) = {energy:18.8f}", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def fill(folder: Path) -> None:
    """The files that the pages read."""
    frames = labelled(crystals(8))
    for name in ("frames", "my_dft_frames", "lgps", "train"):
        write(folder / f"{name}.extxyz", frames)
    write(folder / "test.extxyz", labelled(crystals(4, seed=5)))
    old = labelled(crystals(8, seed=9, symbols="Na4S4"))
    for name in ("mptrj_tenth", "my_old_frames"):
        write(folder / f"{name}.extxyz", old)
    write(folder / "molecules.extxyz", labelled(molecules(8)))
    write(folder / "old_molecules.extxyz", molecules(8, seed=3))
    initial, relaxed = pairs(4)
    write(folder / "initial.extxyz", initial)
    write(folder / "relaxed.extxyz", relaxed)
    write(folder / "structure.extxyz", crystals(1, seed=7)[0])
    for run in ("600K", "1000K"):
        write_outcar(folder / "vasp" / run / "OUTCAR", labelled(crystals(4, seed=len(run))))
    published(folder)
    options = {"model": "7net-0", "train": "frames.extxyz", "output": "runs/from_config", "epochs": 2}
    (folder / "run.yaml").write_text(yaml.safe_dump(options))


def copy(source: Path, target: Path) -> None:
    """All files of :func:`fill`, in another folder."""
    shutil.copytree(source, target, dirs_exist_ok=True)
