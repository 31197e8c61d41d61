"""Energies, forces and stresses on the device against float64 on the CPU, and where an evaluation waits for the GPU."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms

from ase_finetune import FinetunedCalculator
from ase_finetune.graphs import AtomGraph, Edges
from ase_finetune.potentials import MorsePotential, Potential
from benchmarks.gpu.models import crystal, labelled, plain, potential, structures
from benchmarks.gpu.stage import Bench, SkippedError

#: Largest errors: energies in meV/atom, the others relative. The matrix units' short float32 would break them.
BOUNDS = {
    "float32": {"energy": 0.1, "forces": 1e-4, "stress": 5e-4},
    "float64": {"energy": 1e-6, "forces": 1e-8, "stress": 1e-8},
}

#: What is usual: eV/Å and eV/Å³.
USUAL = {"forces": 0.1, "stress": 1e-3}


class Twins:
    """A model on the device in both precisions, and in float64 on the CPU; each is loaded when it is asked for.

    Parameters
    ----------
    name
        Of the model.
    bench
        Where it is measured.
    """

    def __init__(self, name: str, bench: Bench) -> None:
        self.name, self.bench = name, bench
        self._kept: dict[tuple[str, str], Potential] = {}

    def on(self, dtype: str) -> Potential:
        """On the device."""
        return self._get(self.bench.device, dtype)

    @property
    def reference(self) -> Potential:
        """In float64 on the CPU."""
        return self._get(torch.device("cpu"), "float64")

    def copied(self, device: torch.device, dtype: str) -> Potential:
        """One more, whose parameters may be changed."""
        return copy.deepcopy(self._get(device, dtype))

    def _get(self, device: torch.device, dtype: str) -> Potential:
        key = str(device), dtype
        if key not in self._kept:
            self._kept[key] = potential(self.name, device, getattr(torch, dtype))
        return self._kept[key]

    @functools.cached_property
    def structures(self) -> list[Atoms]:
        """Of different sizes."""
        return structures(self.reference, 20 if self.bench.quick else 100)

    @functools.cached_property
    def frames(self) -> list[Atoms]:
        """Small labelled structures."""
        return labelled(self.reference, [atoms for atoms in self.structures if len(atoms) <= 20])

    @functools.cached_property
    def wanted(self) -> list[dict[str, Any]]:
        """Results of the reference for the structures after they have moved, one at a time."""
        calculator = FinetunedCalculator(self.reference, device="cpu")
        return [dict(evaluate(calculator, moved(atoms))) for atoms in self.structures]


def verdict(errors: Mapping[str, float], bounds: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """Values of a row that is right if no error is above its bound; NaN is."""
    right = all(errors[name] <= bound for name, bound in bounds.items())
    return {"right": right, "errors": dict(errors), "bounds": dict(bounds), **more}


def evaluate(calculator: FinetunedCalculator, atoms: Atoms) -> dict[str, Any]:
    """Results of one evaluation."""
    calculator.calculate(atoms, ["energy", "forces", "stress"])
    return calculator.results


def errors(found: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Largest errors over structures: energy in meV/atom, forces and stress relative to what is wanted or usual."""
    pairs = list(zip(found, wanted, strict=True))
    energy = max(1e3 * abs(f["energy"] - w["energy"]) / len(w["forces"]) for f, w in pairs)
    rest = {name: max(_relative(f[name], w[name], usual) for f, w in pairs) for name, usual in USUAL.items()}
    return {"energy": energy} | rest


def _relative(found: Any, wanted: Any, usual: float) -> float:
    """Root of the mean square of the difference over that of what is wanted: symmetry can make it vanish."""
    rms = [float(np.sqrt(np.mean(np.square(value)))) for value in (np.subtract(found, wanted), np.asarray(wanted))]
    return rms[0] / max(rms[1], usual)


def single(one: Twins, dtype: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """One structure after the other, before and after it moves: then nothing is new to the calculator."""
    calculator = FinetunedCalculator(one.on(dtype), device=str(one.bench.device), **options)
    found = []
    for atoms in one.structures:
        evaluate(calculator, atoms)
        found.append(dict(evaluate(calculator, moved(atoms))))
    return verdict(errors(found, one.wanted), BOUNDS[dtype], structures=[str(a.symbols) for a in one.structures])


def moved(atoms: Atoms) -> Atoms:
    """As MD moves atoms in a step: the neighbour list stays."""
    found = plain(atoms)
    found.positions += np.random.default_rng(0).normal(scale=0.01, size=found.positions.shape)
    return found


def batched(one: Twins) -> dict[str, Any]:
    """All structures in one batch."""
    calculator = FinetunedCalculator(one.on("float32"), device=str(one.bench.device))
    return verdict(
        errors(calculator.calculate_many([moved(atoms) for atoms in one.structures]), one.wanted), BOUNDS["float32"]
    )


def without_waiting(one: Twins) -> dict[str, Any]:
    """An evaluation of a graph that is on the device, in which nothing may wait for the GPU: a check of its own.

    Such an evaluation can be captured in a CUDA graph. One that selects edges waits, which is reported and not fatal.
    """
    _needs_gpu(one)
    model = one.on("float32")
    graph = AtomGraph.from_atoms(crystal(64), model.cutoff).to(one.bench.device)
    model.predict(graph)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.predict(graph)
    except RuntimeError as error:
        return {"value": "it waits", "short": _place(error), "reason": str(error)[:300]}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"value": "nothing waits"}


def waits(one: Twins, options: Mapping[str, Any]) -> dict[str, Any]:
    """How often a step of MD with the calculator waits for the GPU, and in which lines."""
    _needs_gpu(one)
    calculator = FinetunedCalculator(one.on("float32"), device=str(one.bench.device), **options)
    atoms = crystal(64)
    for _ in range(3):
        evaluate(calculator, atoms)
        atoms = moved(atoms)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            evaluate(calculator, atoms)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{_short(w.filename)}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    counted = {place: places.count(place) for place in dict.fromkeys(places)}
    return {"value": len(places), "unit": "waits", "places": counted, "short": ", ".join(counted)[:120]}


class _Reading(MorsePotential):
    """A model that reads a number from the GPU in each evaluation."""

    def atomic_energies(self, graph: AtomGraph, edges: Edges) -> torch.Tensor:
        energies = super().atomic_energies(graph, edges)
        return energies * (2.0 - float(energies.detach().sum() != torch.inf))


def not_recordable(one: Twins) -> dict[str, Any]:
    """A model that cannot be recorded: one warning, right forces, and torch's allocator is as it was."""
    _needs_gpu(one)
    device = one.bench.device
    found, warned = {}, {}
    for how in ("auto", "none"):
        calculator = FinetunedCalculator(_Reading([14]).to(device), device=str(device), accelerate=how)
        atoms = crystal(64)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                found[how] = evaluate(calculator, atoms)
                atoms = moved(atoms)
        warned[how] = len(caught)
    torch.cuda.empty_cache()
    wrong = errors([found["auto"]], [found["none"]]) | {"warnings missing": abs(warned["auto"] - 1)}
    return verdict(wrong, BOUNDS["float32"] | {"warnings missing": 0})


def _needs_gpu(one: Twins) -> None:
    if not one.bench.on_gpu:
        raise SkippedError("needs a GPU")


def _place(error: BaseException) -> str:
    """The innermost line of ours, or else of anyone, that an error came through."""
    places, trace = [], error.__traceback__
    while trace is not None:
        places.append(f"{_short(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}")
        trace = trace.tb_next
    return ([place for place in places if "ase_finetune" in place] or places)[-1]


def _short(file: str) -> str:
    for root in ("ase_finetune", "site-packages"):
        if f"/{root}/" in file:
            return root + file.rsplit(f"/{root}", 1)[1]
    return file
