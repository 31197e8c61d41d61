"""Whether a fine-tuned model can be relied on in MD: energy drift, NaN on perturbed structures, finite differences.

    python -m benchmarks.reliability.md [--systems LGPS Si] [--data FOLDER] [--quick] [--output FILE]

For each system 7net-0 is fine-tuned briefly by reEWC on some of its frames. Then 500 perturbed structures are
evaluated, forces and stress are compared with differences of energies in float64, and NVE dynamics at 300 K run for
2 ps with a time step of 1 fs (lithium and silicon: the fastest vibrations take 60 fs), in float64 and float32.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.io import read
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from ase_finetune import FinetunedCalculator, finetune
from ase_finetune.data import embedded_replay
from benchmarks.reliability.common import Check, data_file, options, quiet, record
from benchmarks.suite import EXAMPLES

MODEL = "7net-0"
TIME_STEP = 1.0  # fs
TEMPERATURE = 300.0  # K
DRIFT = 1.0  # meV/atom/ps, in float64
# What central differences of float64 energies resolve:
FORCES = 1e-6  # eV/Å
STRESS = 1e-8  # eV/Å³


def frames(system: str, data: Path | None) -> list[Atoms]:
    """All labelled frames of a system."""
    files: dict[str, Callable[[], Path]] = {
        "LGPS": lambda: data_file(data, "lgps_train.extxyz"),
        "Si": lambda: data_file(data, "mlearn_Si.extxyz"),
        "LiPS": lambda: EXAMPLES / "lips_train.extxyz",
    }
    found: list[Atoms] = read(files[system](), index=":")
    return found


def cell_for_dynamics(system: str, labelled: Sequence[Atoms], calculator: FinetunedCalculator) -> Atoms:
    """64 atoms of silicon, or a frame of the others near a minimum of the model."""
    if system == "Si":
        return bulk("Si", cubic=True) * (2, 2, 2)
    atoms = labelled[0].copy()
    atoms.calc = calculator
    FIRE(atoms, logfile=None).run(fmax=0.1, steps=60)
    return atoms


def fine_tuned(labelled: Sequence[Atoms], folder: Path, quick: bool) -> FinetunedCalculator:
    """A short reEWC run on frames spread over the set, saved to be loaded in either precision."""
    count = 4 if quick else 24
    chosen = [labelled[index] for index in np.linspace(0, len(labelled) - 1, count).astype(int)]
    size = 4 if quick else 40
    return finetune(
        MODEL,
        chosen,
        0.25,
        method="reewc",
        epochs=1 if quick else 2,
        replay_size=size,
        fisher_size=size,
        monitor_size=2 if quick else 8,
        output=folder,
        verbose=False,
    )


def dynamics(start: Atoms, calculator: FinetunedCalculator, picoseconds: float) -> dict[str, Any]:
    """NVE from a minimum at twice the temperature, half of which goes into the potential energy."""
    atoms = start.copy()
    # Maxwell and Boltzmann by hand: ASE's function has another name in every other version.
    width = np.sqrt(atoms.get_masses() * units.kB * 2 * TEMPERATURE)
    atoms.set_momenta(np.random.default_rng(0).standard_normal((len(atoms), 3)) * width[:, None])
    Stationary(atoms)
    atoms.calc = calculator
    energies, temperatures, momenta = [], [], []

    def look() -> None:
        energies.append(atoms.get_total_energy())
        temperatures.append(atoms.get_temperature())
        own = atoms.get_momenta()
        momenta.append(np.linalg.norm(own.sum(axis=0)) / np.linalg.norm(own, axis=1).sum())

    integrator = VelocityVerlet(atoms, timestep=TIME_STEP * units.fs)
    integrator.attach(look)
    began = time.perf_counter()
    steps = round(1000 * picoseconds / TIME_STEP)
    integrator.run(steps)
    times = TIME_STEP / 1000 * np.arange(len(energies))  # ps
    values = 1000 * np.array(energies) / len(atoms)  # meV/atom
    (slope, intercept), covariance = np.polyfit(times, values, 1, cov=len(values) > 5)[:2]
    return {
        "steps": steps,
        "atoms": len(atoms),
        "formula": str(atoms.symbols),
        "drift": float(slope),
        "drift_error": float(np.sqrt(np.atleast_2d(covariance)[0, 0])),
        "fluctuation": float(np.std(values - slope * times - intercept)),
        "temperature": float(np.mean(temperatures[len(temperatures) // 4 :])),
        "momentum": float(max(momenta)),
        "seconds_per_step": (time.perf_counter() - began) / steps,
    }


def perturbed(labelled: Sequence[Atoms], count: int) -> list[Atoms]:
    """Rattled by 0.01 to 0.5 Å and strained by up to 5 %: frames of the system and small crystals of all sorts."""
    random = np.random.default_rng(0)
    crystals = [atoms for atoms in embedded_replay() if len(atoms) <= 24]
    made = []
    for index in range(count):
        # One in ten from the system itself, whose cells are larger.
        source: Sequence[Atoms] = labelled if index % 10 == 0 else crystals
        atoms = source[int(random.integers(len(source)))].copy()
        atoms.set_cell(atoms.cell @ (np.eye(3) + random.uniform(-0.05, 0.05, (3, 3))), scale_atoms=True)
        atoms.rattle(10 ** random.uniform(-2, np.log10(0.5)), seed=index)
        made.append(atoms)
    return made


def not_finite(calculator: FinetunedCalculator, structures: Sequence[Atoms]) -> int:
    """Structures with a NaN or an infinity in what is predicted for them."""
    results = calculator.calculate_many(structures)
    names = ("energy", "energies", "forces", "stress")
    return sum(not all(np.isfinite(result[name]).all() for name in names) for result in results)


def force_difference(calculator: FinetunedCalculator, atoms: Atoms, components: int, h: float = 1e-4) -> float:
    """Largest deviation (eV/Å) of forces from central differences, over some components."""
    forces = calculator.get_property("forces", atoms)
    random = np.random.default_rng(1)
    worst = 0.0
    for atom, axis in zip(
        random.integers(len(atoms), size=components), random.integers(3, size=components), strict=True
    ):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * h
            energies.append(calculator.get_property("energy", moved))
        worst = max(worst, abs(forces[atom, axis] + (energies[0] - energies[1]) / (2 * h)))
    return worst


def stress_difference(calculator: FinetunedCalculator, atoms: Atoms, h: float = 1e-5) -> float:
    """Largest deviation (eV/Å³) of the stress from central differences in the strain."""
    stress = calculator.get_property("stress", atoms)
    worst = 0.0
    for voigt, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += sign * h / 2
            strain[j, i] += sign * h / 2
            moved = atoms.copy()
            moved.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
            energies.append(calculator.get_property("energy", moved))
        # An off-diagonal strain of h/2 on both sides works against the stress with weight h.
        worst = max(worst, abs(stress[voigt] - (energies[0] - energies[1]) / (2 * h * atoms.get_volume())))
    return worst


def run(system: str, data: Path | None, output: Path, quick: bool) -> bool:
    """One system from its fine-tuning to its dynamics."""
    labelled = frames(system, data)
    folder = output.parent / f"md-{system}-{time.strftime('%Y%m%d-%H%M%S')}"
    began = time.perf_counter()
    tuned = fine_tuned(labelled, folder, quick)
    seconds = time.perf_counter() - began
    print(f"{system}: fine-tuned in {seconds:.0f} s, best epoch {tuned.metadata['errors']['best_epoch']}", flush=True)
    double = FinetunedCalculator(folder / "model", dtype="float64")
    structures = perturbed(labelled, 20 if quick else 500)
    components = 4 if quick else 24
    start = cell_for_dynamics(system, labelled, double)
    compared = [atoms.copy() for atoms in (labelled[1], structures[1])]
    checks = [
        Check(f"perturbed structures with a NaN, of {len(structures)}", not_finite(tuned, structures), bound=0),
        Check(
            "forces against differences, float64",
            max(force_difference(double, atoms, components) for atoms in compared),
            "eV/Å",
            FORCES,
        ),
        Check(
            "stress against differences, float64",
            max(stress_difference(double, atoms) for atoms in compared),
            "eV/Å³",
            STRESS,
        ),
    ]
    details: dict[str, Any] = {"finetune_seconds": seconds, "errors": tuned.metadata["errors"]}
    for dtype in ("float64", "float32"):
        calculator = double if dtype == "float64" else FinetunedCalculator(folder / "model", dtype=dtype)
        found = dynamics(start, calculator, 0.02 if quick else 2.0)
        print(f"{system} {dtype}: {found}", flush=True)
        details[f"NVE {dtype}"] = found
        checks += [
            # 20 steps tell nothing about a drift.
            Check(
                f"drift, {found['atoms']} atoms, {dtype}",
                found["drift"],
                "meV/atom/ps",
                DRIFT if dtype == "float64" and not quick else None,
            ),
            Check(f"total momentum / sum of momenta, {dtype}", found["momentum"], "", 1e-4),
            Check(f"mean temperature, {dtype}", found["temperature"], "K"),
        ]
    return record(output, f"md {system}", checks, details, quick)


def main(argv: Sequence[str] | None = None) -> int:
    parser = options(__doc__, "md.json")
    parser.add_argument("--systems", nargs="+", choices=["LGPS", "Si", "LiPS"], default=["LGPS", "Si"])
    arguments = parser.parse_args(argv)
    quiet()
    passed = [run(system, arguments.data, arguments.output, arguments.quick) for system in arguments.systems]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
