"""What an optimizer is here: a pure function from its state and the forces to a displacement."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.optimize.layout import Layout

#: A hyperparameter: a number, or a tensor without dimensions that gradients are wanted of.
Scalar = float | Tensor


def per_row(axis: int = 0) -> Any:
    """Field of a :class:`State` that has a value for every row of coordinates, along ``axis``."""
    return field(metadata={"of": "rows", "axis": axis})


def per_structure(axis: int = 0) -> Any:
    """Field of a :class:`State` that has a value for every structure, along ``axis``."""
    return field(metadata={"of": "structures", "axis": axis})


@dataclass(frozen=True)
class State:
    """What an optimizer remembers between steps: tensors only, never changed in place.

    Every field of a subclass is declared with :func:`per_row` or :func:`per_structure`, so that
    structures can leave a batch and join it.
    """

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors in the order of the fields."""
        return tuple(getattr(self, item.name) for item in dataclasses.fields(self))

    def with_tensors(self: StateT, tensors: Sequence[Tensor]) -> StateT:
        """A state of the same kind with other tensors."""
        return type(self)(*tensors)

    def select(self: StateT, rows: Tensor, structures: Tensor) -> StateT:
        """The state of some structures, given the indices of their rows and their own."""
        index = {"rows": rows, "structures": structures}
        return self.with_tensors(
            [
                getattr(self, item.name).index_select(item.metadata["axis"], index[item.metadata["of"]])
                for item in dataclasses.fields(self)
            ]
        )

    def scaled(self, tensors: Sequence[Tensor], factor: Tensor, layout: Layout) -> list[Tensor]:
        """Tensors like those of this state, each structure's multiplied by its factor (b,)."""
        results = []
        for item, tensor in zip(dataclasses.fields(self), tensors, strict=True):
            values = factor[layout.owner] if item.metadata["of"] == "rows" else factor
            shape = [1] * tensor.ndim
            shape[item.metadata["axis"]] = -1
            results.append(tensor * values.reshape(shape) if tensor.is_floating_point() else tensor)
        return results

    def joined(self: StateT, other: StateT, order: Tensor) -> StateT:
        """The state of two batches as one; ``order`` is that of their rows, one after the other.

        A history of another length is filled up with zeros at its beginning.
        """
        joint = []
        for item, mine, theirs in zip(dataclasses.fields(self), self.tensors(), other.tensors(), strict=True):
            axis = item.metadata["axis"]
            if axis == 1:
                mine, theirs = _same_length(mine, theirs)
            both = torch.cat([mine, theirs], dim=axis)
            joint.append(both.index_select(axis, order) if item.metadata["of"] == "rows" else both)
        return self.with_tensors(joint)

    def detached(self: StateT) -> StateT:
        """The same values without their graph."""
        return self.with_tensors([tensor.detach() for tensor in self.tensors()])


StateT = TypeVar("StateT", bound=State)


def _same_length(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    length = max(len(one), len(two))

    def filled(history: Tensor) -> Tensor:
        return torch.cat([history.new_zeros((length - len(history), *history.shape[1:])), history])

    return filled(one), filled(two)


@dataclass(frozen=True)
class Method(ABC, Generic[StateT]):
    """An optimizer: :meth:`step` is a pure, differentiable function for a whole batch of structures.

    Subclasses are dataclasses of hyperparameters. The one named by :attr:`step_parameter` sets the length
    of the steps and may be a tensor that requires gradients.
    """

    name: ClassVar[str]
    step_parameter: ClassVar[str]

    @abstractmethod
    def start(self, coordinates: Tensor, layout: Layout) -> StateT:
        """State before the first step at ``coordinates`` (N, 3)."""

    @abstractmethod
    def step(self, state: StateT, forces: Tensor, layout: Layout) -> tuple[Tensor, StateT]:
        """Displacement (N, 3) in Å for forces (N, 3) in eV/Å, and the next state."""

    def parameters(self) -> list[Tensor]:
        """Hyperparameters that require gradients."""
        values = [getattr(self, item.name) for item in dataclasses.fields(self)]
        return [value for value in values if isinstance(value, Tensor) and value.requires_grad]

    def with_step_size(self: MethodT, value: Scalar) -> MethodT:
        """The same method with another step size."""
        return dataclasses.replace(self, **{self.step_parameter: value})


MethodT = TypeVar("MethodT", bound="Method[Any]")


def check_positive(name: str, value: Scalar) -> None:
    """Raise an :class:`InputError` unless a hyperparameter is a finite positive number."""
    number = float(torch.as_tensor(value, dtype=torch.float64).detach())
    if not 0 < number < float("inf"):
        raise InputError(f"{name} must be a positive number, got {number:g}")


def as_tensor(value: Scalar, like: Tensor) -> Tensor:
    """A hyperparameter as a tensor without dimensions, with its gradient if it has one."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def limited(displacement: Tensor, length: Tensor, maxstep: float, layout: Layout) -> Tensor:
    """Shorten the displacement of every structure whose ``length`` (b,) exceeds ``maxstep`` (Å)."""
    too_long = length > maxstep
    factor = torch.where(too_long, maxstep / torch.where(too_long, length, 1.0), torch.ones_like(length))
    return displacement * layout.spread(factor)
