"""Errors of a potential on the sets of a study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers

from ase_finetune import FinetunedCalculator
from ase_finetune.data import FrameSet, ReferenceOffsets, align, embedded_replay, fit_reference, read_frames
from ase_finetune.metrics import measure
from ase_finetune.potentials import Potential
from ase_finetune.potentials.batched import predict_many

#: File of each set, without suffix.
FILES = {
    "lgps": "lgps_valid",
    "mptrj": "mptrj_retention",
    "unseen": "mptrj_retention",  # where "mptrj" is another file
    "wbm": "wbm_relaxed",
    "lips": "lips_test",
    "lips_valid": "lips_valid",
    "silicon": "mlearn_Si",
    "crystals": "crystal_pairs_valid_relaxed",
    "relax_trajectories": "relax_trajectories",
    "solvents": "mace_tutorial/solvent_test",
}


def read_set(data: Path, file: str, count: int | None = None) -> FrameSet:
    """Up to ``count`` frames of a file, spread evenly over those that are not replay structures of the package."""
    frames = read_frames(data / f"{file}.extxyz", name=file)
    replayed = {atoms.info["source_id"] for atoms in embedded_replay()}
    frames = frames.select([k for k, frame in enumerate(frames) if frame.atoms.info.get("material_id") not in replayed])
    if count is None or count >= len(frames):
        return frames
    return frames.select([k * len(frames) // count for k in range(count)])


class Judge:
    """Measures potentials on the sets of a study, which are read once.

    Parameters
    ----------
    data
        Folder of the research data.
    sets
        Names of :data:`FILES`, and how many of their frames are used; or ``file``, which stands for another one than
        there, and ``most_atoms`` of its frames.
    """

    def __init__(self, data: Path, sets: Mapping[str, int | Mapping[str, Any] | None]) -> None:
        self._sets = {name: _judged(data, name, how) for name, how in sets.items()}

    def __call__(self, potential: Potential, offsets: Mapping[str, float] | None = None) -> dict[str, dict[str, Any]]:
        """Errors by set; ``energy_mae_target`` is that with the offsets of the fine-tuning added, meV/atom."""
        return {name: errors_on(potential, frames, offsets) for name, frames in self._sets.items()}


def _judged(data: Path, name: str, how: int | Mapping[str, Any] | None) -> FrameSet:
    if how is None or isinstance(how, int):
        return read_set(data, FILES[name], how)
    frames = read_set(data, how["file"])
    return frames.select(k for k, frame in enumerate(frames) if len(frame.atoms) <= how["most_atoms"])


def errors_on(potential: Potential, frames: FrameSet, offsets: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Errors on one set; ``energy_mae_aligned`` is that after the best per-element offsets, meV/atom."""
    graphs = list(frames.graphs(potential.cutoff))
    predictions = predict_many(potential, graphs)
    fitted = fit_reference(frames, [float(prediction.energy[0]) for prediction in predictions])
    moved = ReferenceOffsets({atomic_numbers[symbol]: value for symbol, value in (offsets or {}).items()})

    def energy_mae(reference: ReferenceOffsets) -> float:
        return measure(predictions, list(align(frames, reference).graphs(potential.cutoff))).energy_mae

    found = measure(predictions, graphs).to_dict() | {"frames": len(frames), "energy_mae_target": energy_mae(moved)}
    if len(frames) >= 2 * fitted.rank:  # else offsets could explain anything
        found["energy_mae_aligned"] = energy_mae(fitted)
    return found


def moved_to(calculator: FinetunedCalculator, start: Potential, fraction: float) -> None:
    """Put a calculator's weights a fraction of the way from those of ``start`` to its own (WiSE-FT).

    Wortsman et al., arXiv 2109.01903.
    """
    pretrained = dict(start.native_parameters())
    with torch.no_grad():
        for name, parameter in calculator.potential.native_parameters():
            parameter.lerp_(pretrained[name].to(parameter), 1 - fraction)
