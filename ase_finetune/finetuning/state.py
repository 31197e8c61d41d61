"""What a training run has in its head between two steps, as tensors and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ase_finetune.errors import CheckpointError
from ase_finetune.finetuning.tasks import Measured, RolloutErrors
from ase_finetune.metrics import Errors
from ase_finetune.trajectories.evaluation import RelaxationErrors


@dataclass
class State:
    """Tensors by name and JSON-able values."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, group: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Put tensors into a group of names; they must not change before they are written."""
        self.tensors |= {f"{group}/{name}": tensor.detach() for name, tensor in tensors}

    def group(self, group: str) -> dict[str, Tensor]:
        """The tensors of a group."""
        start = f"{group}/"
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


@torch.no_grad()
def copy_into(named: Iterable[tuple[str, Tensor]], values: Mapping[str, Tensor]) -> None:
    """Give tensors the values of the same names.

    Raises
    ------
    CheckpointError
        If a name is missing or a shape differs.
    """
    for name, tensor in named:
        if name not in values or values[name].shape != tensor.shape:
            raise CheckpointError(f"the checkpoint does not fit the model: it has no {name} of {tuple(tensor.shape)}")
        tensor.copy_(values[name])


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[float]]:
    """What an optimizer remembers of each parameter, and the learning rate of each group."""
    remembered = optimizer.state_dict()["state"]
    tensors = {f"{index}/{key}": value for index, slots in remembered.items() for key, value in slots.items()}
    return tensors, [float(group["lr"]) for group in optimizer.param_groups]


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rates: Iterable[float]
) -> None:
    """Give back what :func:`optimizer_state` took."""
    remembered: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split("/")
        remembered.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    optimizer.load_state_dict({"state": remembered, "param_groups": groups})


_MEASURES: dict[str, type[Any]] = {kind.__name__: kind for kind in (Errors, RolloutErrors, RelaxationErrors)}


def measured_to_json(errors: Mapping[str, Measured | None]) -> dict[str, Any]:
    """Errors of several sets, JSON-able."""
    return {
        name: None if found is None else {"kind": type(found).__name__, "values": dataclasses.asdict(found)}  # type: ignore[call-overload]  # all are dataclasses
        for name, found in errors.items()
    }


def measured_from_json(content: Mapping[str, Any]) -> dict[str, Measured | None]:
    """The inverse of :func:`measured_to_json`."""
    return {
        name: None if found is None else _MEASURES[found["kind"]](**found["values"]) for name, found in content.items()
    }


def clones(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Copies of parameters as they are now."""
    return {name: parameter.detach().clone() for name, parameter in named}
