"""Curvatures other than those of the package, as Fisher files that a run reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from ase_finetune.continual import FisherInformation, gaussian_fisher, save_fisher
from ase_finetune.data import embedded_replay, read_frames
from ase_finetune.potentials import load_potential
from ase_finetune.potentials.storage import potential_hash

#: So large that a term has no weight.
_NOTHING = 1e6


def make_fisher(model: str, how: dict[str, Any], path: Path, replay: Sequence[Atoms] | None = None) -> Path:
    """Write the curvature that a case asks for, unless it is there.

    Parameters
    ----------
    model
        Pretrained model.
    how
        ``kind``: ``"all"`` (label-free, as the package does), ``"uniform"`` (one everywhere: L2-SP), ``"forces"`` or
        ``"energies"`` (label-free, of these alone), ``"per-tensor"`` (label-free, each tensor divided by its mean),
        ``"per-tensor-mean"`` (the mean of each tensor in place of its entries), ``"power"`` (label-free to the power
        ``exponent``); ``size`` structures.
    path
        File.
    replay
        Structures it is estimated on; the embedded ones if not given.
    """
    if path.exists():
        return path
    potential, _ = load_potential(model)
    size = int(how.get("size", 100))
    frames = read_frames(list(replay or embedded_replay())[:size], name="replay", require_labels=False)
    graphs = list(frames.graphs(potential.cutoff))
    scales = {"forces": {"energy_scale": _NOTHING}, "energies": {"forces_scale": _NOTHING}}
    options: dict[str, Any] = scales.get(how["kind"], {})
    if how["kind"] == "uniform":
        named = potential.native_parameters(trainable_only=True)
        fisher = FisherInformation({name: torch.ones_like(parameter).detach() for name, parameter in named})
    else:
        fisher = gaussian_fisher(potential, graphs, **options)
    change, exponent = _CHANGES.get(how["kind"], _as_it_is), float(how.get("exponent", 1))
    values = {name: change(value, exponent) for name, value in fisher.values.items()}
    made = FisherInformation(values, {"kind": f"study: {how}"})
    path.parent.mkdir(parents=True, exist_ok=True)
    save_fisher(made, path, model_hash=potential_hash(potential), data_hash=frames.digest())
    return path


def _as_it_is(value: torch.Tensor, _: float) -> torch.Tensor:
    return value


def _per_tensor(value: torch.Tensor, _: float) -> torch.Tensor:
    mean = value.mean()
    return value / mean if float(mean) > 0 else value


_CHANGES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "per-tensor": _per_tensor,
    "per-tensor-mean": lambda value, _: torch.full_like(value, float(value.mean())),
    "power": lambda value, exponent: value**exponent,
}
