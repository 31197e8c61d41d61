"""Fisher information of labelled structures: batches with random signs against one backward pass per structure."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from torch import Tensor

from ase_finetune import FinetunedCalculator
from ase_finetune.continual import FisherInformation, empirical_fisher
from ase_finetune.data import read_frames
from ase_finetune.losses import Loss
from ase_finetune.potentials import Potential, load_potential
from benchmarks.inputs import MODEL, small_crystals, target, train, trainer
from benchmarks.paired import compare
from benchmarks.peers import sevennet_fisher
from benchmarks.suite import Missing, Row, Setting, Target
from benchmarks.training_step import naive

TARGETS = {"500 structures": Target(cpu=0.6, gpu=0.1)}


def structures(setting: Setting, potential: Potential, count: int) -> list[Atoms]:
    """Labelled structures: frames of the research data, or embedded ones with the model's own labels and noise.

    Without noise the residuals, and the Fisher information with them, would be zero.
    """
    if setting.data is not None and not setting.quick:
        found: list[Atoms] = read(setting.data / "mptrj_replay.extxyz", index=f":{count}")
        return found
    crystals = small_crystals(count, 4 if setting.quick else 64)
    calculator = FinetunedCalculator(potential, device=str(potential.device))
    random = np.random.default_rng(0)
    return [noisy(*pair, random) for pair in zip(crystals, calculator.calculate_many(crystals), strict=True)]


def noisy(crystal: Atoms, results: dict[str, Any], random: np.random.Generator) -> Atoms:
    """Errors as of a pretrained model: 20 meV/atom, 0.1 eV/Å, 5 meV/Å³ (8 kbar)."""
    scales = {"energy": 0.02 * len(crystal), "forces": 0.1, "stress": 0.005}
    labels = {name: results[name] + random.normal(scale=s, size=np.shape(results[name])) for name, s in scales.items()}
    atoms = crystal.copy()
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def displacement(setting: Setting) -> dict[str, Tensor]:
    """Where naive fine-tuning takes the parameters in a few steps: what the penalty is there to weigh."""
    potential, _ = load_potential(MODEL, device=setting.device)
    before = {name: parameter.detach().clone() for name, parameter in potential.native_parameters()}
    graphs = read_frames(target(setting)).select([0]).graphs(potential.cutoff)
    train(trainer(potential, graphs, naive(Loss(stress_weight=0.0), 1)), [[0]] * setting.size(1, 3))
    return {name: (p.detach() - before[name]).cpu() for name, p in potential.native_parameters(trainable_only=True)}


def error(estimate: FisherInformation, exact: FisherInformation, moved: Mapping[str, Tensor]) -> str:
    """Correlation of both, each parameter weighted by its squared displacement, and the ratio of their penalties."""
    names = list(exact.values)
    flat = [
        torch.cat([values[name].double().flatten() for name in names]).numpy()
        for values in (estimate.values, exact.values)
    ]
    weights = torch.cat([moved[name].double().flatten() for name in names]).square().numpy()
    covariance = np.cov(flat, aweights=weights)
    correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    penalties = [float(values @ weights) for values in flat]
    return f"weighted correlation {correlation:.3f}, penalty ratio {penalties[0] / penalties[1]:.3f}"


def run(setting: Setting) -> Iterator[Row | Missing]:
    potential, _ = load_potential(MODEL, device=setting.device)
    # The loop over 500 takes a CPU several minutes a repeat; its time is proportional to their number.
    count = setting.size(3, 100, 500)
    frames, loss = structures(setting, potential, count), Loss()
    graphs = read_frames(frames).graphs(potential.cutoff)
    published = sevennet_fisher(frames, setting.device)
    found: dict[Any, FisherInformation] = {}

    def estimate(probes: int | None) -> None:
        found[probes] = empirical_fisher(potential, graphs, loss, probes=probes)

    def loop() -> None:
        found["published"] = FisherInformation({name: value.cpu() for name, value in published().items()})

    moved = displacement(setting)
    empirical_fisher(potential, graphs[-2:], loss)  # nobody pays for the first evaluations
    sevennet_fisher(frames[-2:], setting.device)()
    # One repeat each on a CPU: the loops are slow, and long enough to be steady.
    times = setting.times(3) if setting.on_gpu else setting.times(1) | {"warmup": 0}
    limit = TARGETS["500 structures"].on(setting)
    for probes in (None, *setting.size((1,), (1, 2), (1, 4))):
        what = "exact" if probes is None else f"{probes} probe{'s' if probes > 1 else ''} a batch"
        measured = compare(functools.partial(estimate, probes), loop, **times)
        note = error(found[probes], found["published"], moved)
        yield Row(f"{len(graphs)} structures, {what}", "a loop with sevenn's model", measured, limit, "s", note)
    measured = compare(functools.partial(estimate, 1), functools.partial(estimate, None), **times)
    note = error(found[1], found[None], moved)
    yield Row(f"{len(graphs)} structures, 1 probe a batch", "our own loop", measured, limit, "s", note)
