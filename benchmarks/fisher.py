"""Fisher information of labelled structures: batches with random signs against one backward pass per structure."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_finetune.continual import FisherInformation, empirical_fisher, pseudo_label
from ase_finetune.data import FrameSet, read_frames
from ase_finetune.graphs import AtomGraph
from ase_finetune.losses import Loss
from ase_finetune.potentials import Potential, load_potential
from benchmarks.inputs import MODEL, small_crystals, target, train, trainer
from benchmarks.paired import compare
from benchmarks.suite import Missing, Row, Setting, Target
from benchmarks.training_step import naive

TARGETS = {"500 structures": Target(cpu=0.6, gpu=0.1)}


def structures(setting: Setting, potential: Potential, count: int) -> Sequence[AtomGraph]:
    """Labelled structures: frames of the research data, or embedded ones with the model's own labels and noise.

    Without noise the residuals, and the Fisher information with them, would be zero.
    """
    if setting.data is not None and not setting.quick:
        frames = read_frames(setting.data / "mptrj_replay.extxyz")
        return frames.select(range(min(count, len(frames)))).graphs(potential.cutoff)
    crystals = small_crystals(count, 4 if setting.quick else 64)
    graphs = FrameSet.from_atoms(crystals, name="crystals").graphs(potential.cutoff)
    generator = torch.Generator().manual_seed(0)
    return [_noisy(graph, generator) for graph in pseudo_label(potential, graphs)]


def _noisy(graph: AtomGraph, generator: torch.Generator) -> AtomGraph:
    """Errors as of a pretrained model: 20 meV/atom, 0.1 eV/Å, 5 meV/Å³ (8 kbar)."""
    scales = {"energy": 0.02 * len(graph.numbers), "forces": 0.1, "stress": 0.005}
    noisy = {}
    for name, scale in scales.items():
        label: Tensor = getattr(graph, name)
        noisy[name] = label + scale * torch.randn(label.shape, generator=generator)
    return graph.replace(**noisy)


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
    graphs, loss = structures(setting, potential, count), Loss()
    found: dict[Any, FisherInformation] = {}

    def estimate(probes: int | None) -> None:
        found[probes] = empirical_fisher(potential, graphs, loss, probes=probes)

    moved = displacement(setting)
    for either in (1, None):  # neither pays for the first evaluations
        empirical_fisher(potential, graphs[:2], loss, probes=either)
    for probes in setting.size((1,), (1, 2), (1, 4)):
        # One repeat each on a CPU: the exact loop is slow, and long enough to be steady.
        times = setting.times(3) if setting.on_gpu else setting.times(1) | {"warmup": 0}
        measured = compare(functools.partial(estimate, probes), functools.partial(estimate, None), **times)
        limit = TARGETS["500 structures"].on(setting) if probes == 1 else None
        name = f"{len(graphs)} structures, {probes} probe{'s' if probes > 1 else ''}"
        yield Row(name, "a loop over structures", measured, limit, "s", error(found[probes], found[None], moved))
