"""What must not be forgotten: replay structures, their labels, and the Fisher information."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ase_finetune.continual import (
    EWCPenalty,
    FisherInformation,
    empirical_fisher,
    gaussian_fisher,
    load_anchor,
    load_fisher,
    pseudo_label,
)
from ase_finetune.data import ReferenceOffsets
from ase_finetune.errors import CheckpointError, InputError
from ase_finetune.finetuning.context import Context
from ase_finetune.finetuning.forgetting import Forgetting
from ase_finetune.finetuning.prepared import Prepared
from ase_finetune.finetuning.replay_sources import OldStructures
from ase_finetune.finetuning.state import clones
from ase_finetune.graphs import AtomGraph
from ase_finetune.metrics import evaluate
from ase_finetune.potentials.base import Potential


def shift_labels(graphs: Sequence[AtomGraph], offsets: ReferenceOffsets) -> list[AtomGraph]:
    """Replay labels in the reference of a model whose own per-element energies were moved by ``offsets``."""
    shifted = []
    for graph in graphs:
        assert graph.energy is not None
        assert graph.energy_mask is not None
        offset = offsets.energy(graph.numbers.tolist())
        shifted.append(graph.replace(energy=graph.energy + offset * graph.energy_mask.to(graph.energy)))
    return shifted


def label_replay(run: Context, old: OldStructures | None) -> tuple[list[AtomGraph], list[AtomGraph]]:
    """Labelled replay graphs to use, and held-out ones to watch forgetting.

    Raises
    ------
    InputError
        If the Fisher information needs labels that are not there.
    """
    if old is None:
        return [], []
    config, log, graphs = run.config, run.log, old.graphs(run.potential)
    if old.has_labels:
        log(f"replay: {len(graphs)} structures with the labels of their file")
        return graphs[: old.trained], graphs[old.trained :]
    if config.uses_ewc and config.fisher == "empirical":
        raise InputError(
            "fisher='empirical' needs replay structures with labels of their own: on labels made by the model "
            "itself the residuals vanish; use the label-free form (fisher='label-free')"
        )
    bare = [graph.without_labels() for graph in graphs]

    def label() -> dict[str, torch.Tensor]:
        with log.bar(len(bare), "pretrained model on replay") as bar:
            shared: dict[str, Any] = {"on_structure": bar.update, "processes": run.processes}
            made = pseudo_label(run.original, bare, cache=_cache_folder(), **shared)
        return {
            f"{index} {name}": value
            for index, graph in enumerate(made)
            for name, value in (("energy", graph.energy), ("forces", graph.forces), ("stress", graph.stress))
            if value is not None and bool(getattr(graph, f"{name}_mask").all())
        }

    labels = run.prepared.tensors("replay labels", label)
    graphs = [
        graph.with_labels(*(labels.get(f"{index} {name}") for name in ("energy", "forces", "stress")))
        for index, graph in enumerate(bare)
    ]
    log(f"replay: {len(graphs)} structures labelled by the pretrained model")
    return graphs[: old.trained], graphs[old.trained :]


def build_penalty(run: Context, replay: list[AtomGraph]) -> tuple[EWCPenalty, FisherInformation]:
    """The EWC penalty of the config; Fisher information is estimated, or read if it is of the pretrained model.

    Raises
    ------
    CheckpointError
        If a Fisher file belongs to another model or loss.
    """
    config, log, potential = run.config, run.log, run.potential
    fisher = _known_fisher(run.prepared, lambda: estimate_fisher(run, replay))
    own = fisher.metadata.get("kind") != "published"
    if not own and config.fisher_anchor is None and potential.several_orders:
        raise CheckpointError(
            f"{config.fisher} does not say which version of {potential.backend} it is for, and versions order weights "
            f"differently under the same names; give fisher_anchor, too: it is compared with the model"
        )
    normalize = own if config.fisher_normalize is None else config.fisher_normalize
    if normalize:
        fisher = fisher.normalized()
    strength = config.ewc_lambda
    if strength is None:
        own_scale = DEFAULT_LAMBDA_RELAXATIONS if config.uses_relaxations else DEFAULT_LAMBDA_FRAMES
        strength = own_scale if normalize else DEFAULT_LAMBDA_RAW
    anchor: Mapping[str, torch.Tensor] | None = None
    if config.fisher_anchor is not None:
        path = config.fisher_anchor
        anchor = run.prepared.tensors("anchor", lambda: _checked_anchor(run.original, path))
    elif run.original is not potential:
        anchor = clones(run.original.native_parameters(trainable_only=True))
    penalty = EWCPenalty(
        potential.native_parameters(trainable_only=True),
        fisher,
        strength,
        anchor=anchor,
        known=[name for name, _ in potential.native_parameters()],
    )
    shares = list(fisher.shares().items())[:3]
    kind = fisher.metadata.get("kind", "unknown")
    log(
        f"Fisher information: {kind}, {'divided by its mean' if normalize else 'as it is'}, lambda {strength:g}; "
        f"largest shares: {', '.join(f'{name} {share:.0%}' for name, share in shares)}"
    )
    return penalty, fisher


def build_forgetting(run: Context, watched: list[AtomGraph], penalty: EWCPenalty | None) -> Forgetting | None:
    """What measures the rise of the errors on watched structures, and holds it; ``None`` if it cannot be measured.

    Raises
    ------
    DataError
        If ``max_forgetting`` is set and the structures carry neither energies nor forces.
    """
    config = run.config
    labelled = any(mask is not None and mask.any() for g in watched for mask in (g.energy_mask, g.forces_mask))
    if not labelled and config.max_forgetting is None:
        return None

    def measure() -> dict[str, float | None]:
        errors = evaluate(run.original, watched, config.loss, processes=run.processes)
        return {} if errors is None else errors.to_dict()

    before = run.prepared.value("errors on watched structures", measure)
    adapted = None if config.max_forgetting is None else penalty
    forgetting = Forgetting(config.bound, before, clones(run.original.native_parameters()), adapted)
    run.log(forgetting.describe())
    return forgetting


def _known_fisher(prepared: Prepared, compute: Callable[[], FisherInformation]) -> FisherInformation:
    """The Fisher information that was found when the run was started, or finds it."""
    found: list[FisherInformation] = []

    def values() -> Mapping[str, torch.Tensor]:
        found.append(compute())
        return found[0].values

    tensors = prepared.tensors("Fisher information", values)
    metadata = prepared.value("metadata of the Fisher information", lambda: found[0].metadata)
    return FisherInformation(tensors, metadata)


def _checked_anchor(potential: Potential, path: str) -> dict[str, torch.Tensor]:
    """Anchor parameters, which must be those of the pretrained model: else they are of another one."""
    anchor = load_anchor(path)
    for name, parameter in potential.native_parameters(trainable_only=True):
        value = anchor.get(name)
        if value is not None and value.shape == parameter.shape:
            difference = float((value.to(parameter) - parameter.detach()).abs().max())
            if difference > 1e-4 * max(1.0, float(parameter.detach().abs().max())):
                other = f"model, or of another version of {potential.backend}" if potential.several_orders else "model"
                raise CheckpointError(f"{path} is the anchor of another {other}: {name} differs by {difference:.2g}")
    return anchor


#: EWC strength for a Fisher information divided by its mean, chosen in docs/science.md: on labelled frames, and where
#: relaxations are trained on, which say nothing about energies. For a raw Fisher information the published one.
DEFAULT_LAMBDA_FRAMES = 2e-4
DEFAULT_LAMBDA_RELAXATIONS = 1e-2
DEFAULT_LAMBDA_RAW = 1e5


def estimate_fisher(run: Context, replay: Sequence[AtomGraph]) -> FisherInformation:
    """Fisher information of the kind that the config asks for, of the first structures; or read from its file.

    Raises
    ------
    InputError
        If it cannot be estimated on these structures.
    CheckpointError
        If a Fisher file belongs to another model or loss.
    """
    config, log, potential = run.config, run.log, run.original
    graphs = replay[: config.fisher_size]
    shared: dict[str, Any] = {"seed": config.seed, "processes": run.processes}
    if config.fisher in ("auto", "label-free"):
        with log.bar(len(graphs) * config.fisher_draws, "Fisher information") as bar:
            return gaussian_fisher(potential, graphs, draws=config.fisher_draws, on_structure=bar.update, **shared)
    if config.fisher == "empirical":
        shared["probes"] = config.fisher_probes
        with log.bar(len(graphs), "Fisher information") as bar:
            return empirical_fisher(potential, graphs, config.loss, on_structure=bar.update, **shared)
    return load_fisher(config.fisher, model_hash=run.original_hash, loss=config.loss)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ase_finetune" / "replay"
