"""Elastic weight consolidation: a quadratic spring that holds what the old data needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ase_finetune.continual.fisher import FisherInformation
from ase_finetune.errors import CheckpointError, InputError


class EWCPenalty:
    """The penalty (lambda/2) sum_i F_i (theta_i - theta*_i)^2 and its gradient.

    The gradient lambda F (theta - theta*) is added straight to ``.grad``: no autograd graph, three fused
    operations per step. Frozen parameters do not move and need no spring.

    Parameters
    ----------
    parameters
        Trainable parameters under the native model's names.
    fisher
        Fisher information; names that match no parameter raise.
    strength
        lambda, in the units of the Fisher information.
    anchor
        theta*, by name; the parameters' present values when not given.
    known
        Names of all parameters of the model, frozen ones included; those may occur in ``fisher``.

    Raises
    ------
    InputError
        If lambda is negative or not finite.
    CheckpointError
        If a name or shape does not fit, or a trainable parameter has no Fisher information.

    References
    ----------
    Kirkpatrick et al., PNAS 114, 3521 (2017); Kim et al., npj Comput. Mater. 12, 26 (2026).
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        fisher: FisherInformation,
        strength: float,
        *,
        anchor: Mapping[str, Tensor] | None = None,
        known: Iterable[str] = (),
    ) -> None:
        named, known = dict(parameters), set(known)
        check_names(named, fisher.values, "Fisher information", known)
        if anchor is not None:
            check_names(named, anchor, "anchor", known)
        self._parameters: list[Tensor] = list(named.values())
        self._fisher = [fisher.values[name].to(parameter) for name, parameter in named.items()]
        self.strength = strength
        self._anchor = [
            parameter.detach().clone() if anchor is None else anchor[name].to(parameter).clone()
            for name, parameter in named.items()
        ]

    @property
    def strength(self) -> float:
        """lambda, which may be set to another finite number that is not negative."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not 0 <= value < float("inf"):
            raise InputError(f"ewc_lambda must be a finite number that is not negative, got {value}")
        self._strength = float(value)
        # Made anew from the Fisher information: a resumed run has the same bits.
        self._stiffness = [self._strength * fisher for fisher in self._fisher]

    @torch.no_grad()
    def value(self) -> float:
        """The penalty in units of the loss."""
        moved = self._moved()
        energies = torch._foreach_mul(torch._foreach_mul(moved, moved), self._stiffness)
        return 0.5 * float(torch.stack([energy.sum(dtype=torch.float64) for energy in energies]).sum())

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add lambda F (theta - theta*) to the gradient of every parameter."""
        pull = self._moved()
        torch._foreach_mul_(pull, self._stiffness)
        gradients = []
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        torch._foreach_add_(gradients, pull)

    def _moved(self) -> list[Tensor]:
        return list(torch._foreach_sub(self._parameters, self._anchor))


def check_names(
    named: Mapping[str, Tensor], values: Mapping[str, Tensor], what: str, known: Iterable[str] = ()
) -> None:
    """Raise a :class:`CheckpointError` unless ``values`` fits the parameters, name by name."""
    foreign = [name for name in values if name not in named and name not in set(known)]
    if foreign:
        raise CheckpointError(f"{what} has {len(foreign)} names this model has no parameter for, first {foreign[0]!r}")
    missing = [name for name in named if name not in values]
    if missing:
        raise CheckpointError(f"{what} lacks {len(missing)} trainable parameters, first {missing[0]!r}")
    for name, parameter in named.items():
        if values[name].shape != parameter.shape:
            shapes = f"{tuple(values[name].shape)}, the model has {tuple(parameter.shape)}"
            raise CheckpointError(f"{what} of {name!r} has shape {shapes}")
        if not bool(torch.isfinite(values[name]).all()):
            raise CheckpointError(f"{what} of {name!r} has values that are not finite")
