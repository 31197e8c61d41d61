"""A few seconds of real work: forces against differences of energies, and one step of fine-tuning."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.finetuning import FinetuneConfig, finetune
from ase_finetune.potentials import Potential, list_models, load_potential
from ase_finetune.potentials.imports import import_backend
from ase_finetune.potentials.mace import MACEPotential

_STEP = 1e-4  # Å
_FORCES = 1e-5  # eV/Å; what is wrong is wrong by far more
_SAME = 1e-5  # eV; what another device or a file may differ by


@dataclass(frozen=True)
class Trial:
    """The outcome of one test.

    Attributes
    ----------
    name, detail
        What was tried, and what came out or went wrong.
    passed
        ``None`` if it was left out; ``detail`` says why.
    seconds
        It took.
    """

    name: str
    passed: bool | None
    detail: str
    seconds: float = 0.0


def run_trials(backend: str, devices: list[str], *, fit: bool = True) -> Iterator[Trial]:
    """Try a backend. No trial raises: what goes wrong is its detail.

    Parameters
    ----------
    backend
        ``"sevenn"`` (with a pretrained model that is here) or ``"mace"`` (a small one with random weights).
    devices
        torch devices beside the CPU.
    fit
        Whether to fine-tune as well.
    """
    try:
        made = _potential(backend)
    except Exception as error:  # noqa: BLE001  # whatever is broken is what we were asked for
        yield Trial(f"{backend}: a model", False, first_line(error))
        return
    if made is None:
        yield Trial(f"{backend}: a model", None, "none is here; a first use downloads one")
        return
    name, potential = made
    yield _tried(f"{name}: forces", lambda: _forces(potential))
    for device in devices:
        yield _tried(f"{name}: {device}", lambda device=device: _same_on(potential, device))  # type: ignore[misc]
    if fit:
        yield _tried(f"{name}: finetune", lambda: _finetune(potential))


def _tried(name: str, work: Callable[[], tuple[bool, str]]) -> Trial:
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside the backends
            passed, detail = work()
    except Exception as error:  # noqa: BLE001  # whatever is broken is what we were asked for
        passed, detail = False, first_line(error)
    return Trial(name, passed, detail, time.perf_counter() - start)


def first_line(error: BaseException) -> str:
    """Kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _potential(backend: str) -> tuple[str, Potential] | None:
    """In float64; ``None`` where no model is on this machine."""
    if backend == "mace":
        return "mace", _small_mace().to(dtype=torch.float64)
    here = [info.name for info in list_models() if info.backend == backend and info.availability in _HERE]
    if not here:
        return None
    # The fastest where there is a choice.
    name = "7net-0" if "7net-0" in here else here[0]
    return name, load_potential(name, dtype=torch.float64)[0]


_HERE = ("shipped", "cached")


def _small_mace() -> MACEPotential:
    modules = import_backend("mace.modules", "mace-torch")
    o3 = import_backend("e3nn.o3", "e3nn")
    block = modules.RealAgnosticResidualInteractionBlock
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        native: torch.nn.Module = modules.ScaleShiftMACE(
            r_max=4.0,
            num_bessel=4,
            num_polynomial_cutoff=5,
            max_ell=1,
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=2,
            num_elements=1,
            hidden_irreps=o3.Irreps("4x0e+4x1o"),
            MLP_irreps=o3.Irreps("4x0e"),
            atomic_energies=np.array([-1.0]),
            avg_num_neighbors=8.0,
            atomic_numbers=[14],
            correlation=2,
            gate=torch.nn.functional.silu,
            radial_MLP=[8],
            heads=["Default"],
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
        )
    return MACEPotential(native)


def _rattled(count: int, a: float = 5.43) -> list[Atoms]:
    structures = [bulk("Si", a=a) for _ in range(count)]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.1, seed=seed)
    return structures


def _calculator(potential: Potential) -> FinetunedCalculator:
    return FinetunedCalculator(potential, dtype=str(potential.dtype).removeprefix("torch."))


def _forces(potential: Potential) -> tuple[bool, str]:
    (atoms,) = _rattled(1)
    moved = []
    for atom, axis, sign in np.ndindex(2, 3, 2):
        moved.append(atoms.copy())
        moved[-1].positions[atom, axis] += (1 - 2 * sign) * _STEP
    results = _calculator(potential).calculate_many([atoms, *moved])
    energies = np.array([result["energy"] for result in results[1:]]).reshape(2, 3, 2)
    worst = np.abs(results[0]["forces"] + (energies[..., 0] - energies[..., 1]) / (2 * _STEP)).max()
    return bool(worst < _FORCES), f"{worst:.0e} eV/Å from differences of energies"


def _same_on(potential: Potential, device: str) -> tuple[bool, str]:
    structures = _rattled(2)
    here = _calculator(potential).calculate_many(structures)
    try:
        there = _calculator(potential.to(device=device)).calculate_many(structures)
    finally:
        potential.to(device="cpu")
    worst = max(np.abs(a[name] - b[name]).max() for a, b in zip(here, there, strict=True) for name in a)
    return bool(worst < _SAME), f"{worst:.0e} eV, eV/Å from the CPU"


def _finetune(potential: Potential) -> tuple[bool, str]:
    train, old = _rattled(4), _rattled(3, a=5.7)
    for atoms, result in zip(train, _calculator(potential).calculate_many(train), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=result["energy"], forces=1.1 * result["forces"])
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        config = FinetuneConfig(epochs=1, monitor_size=1, fisher_size=2, device="cpu")
        tuned = finetune(potential, train, None, replay=old, output=output, verbose=False, config=config)
        loaded = FinetunedCalculator(output / "model", device="cpu")
        energies = [calculator.calculate_many(old)[0]["energy"] for calculator in (tuned, loaded)]
    apart = abs(energies[0] - energies[1])
    return bool(apart < _SAME), f"one step of reEWC; saved and loaded, {apart:.0e} eV apart"
