"""The one update all methods are made of: a loss in pieces, its gradient, and a step of the optimizer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ase_finetune.continual import EWCPenalty
from ase_finetune.errors import NotFiniteError
from ase_finetune.parallel import ALONE, Processes
from ase_finetune.potentials.memory import EdgeBudget, halve_if_out_of_memory


class PieceLoss(NamedTuple):
    """What some examples contribute to the loss of their batch, and what to note once its gradient is known.

    ``keep`` is called if the step is made. It must not hold on to graphs of autograd, since it waits for all pieces of
    the batch.
    """

    value: Tensor
    keep: Callable[[], object]


@dataclass(frozen=True)
class Piece:
    """A part of a batch that is worked on at once, and can be halved.

    Attributes
    ----------
    examples
        Numbers of the examples, whatever ``loss`` and ``edges`` take them for.
    edges
        How many edges each of them has.
    loss
        Of some of them. Must leave no trace: that is for ``keep`` of its result.
    budget
        Bound of the pieces of batches to come.
    describe
        How messages name an example.
    """

    examples: list[int]
    edges: Mapping[int, int]
    loss: Callable[[list[int]], PieceLoss]
    budget: EdgeBudget
    describe: Callable[[int], str] = "example {}".format


class Updater:
    """One optimizer step on a loss, with the EWC penalty and gradient clipping.

    Every method is made of such updates: ``alternate`` makes two, each with its own gradient, and
    the penalty acts on both; ``joint`` makes one on the sum of two losses.

    Parameters
    ----------
    optimizer
        Of the trainable parameters.
    penalty
        EWC, or ``None``.
    clip_norm
        Largest norm of the gradient, or ``None``.
    processes
        Share each batch: the gradients of their pieces are summed.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        penalty: EWCPenalty | None = None,
        clip_norm: float | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.optimizer = optimizer
        self.penalty = penalty
        self.clip_norm = clip_norm
        self.processes = processes
        self._parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]

    def update(self, pieces: Sequence[Piece]) -> float:
        """Make one step on the sum of the pieces of a loss; returns it without the penalty.

        Each piece is evaluated and its gradient added before the next one, so that memory is that of
        the largest piece. A piece that does not fit into memory is halved, to the same effect.

        Raises
        ------
        NotFiniteError
            If the loss or its gradient is not finite; it names the examples. Parameters and optimizer are left as
            they were, and nothing is kept of the pieces.
        ProcessError
            If another process could not evaluate its share.
        """
        self.optimizer.zero_grad(set_to_none=True)
        keeps: list[Callable[[], object]] = []
        total = self._sum(self.processes.together(lambda: self._differentiate(pieces, keeps)))
        if self.penalty is not None:
            self.penalty.add_gradient()
        length = nn.utils.clip_grad_norm_(self._parameters, self.clip_norm or math.inf)
        # Both at once: only here a step has to wait for a GPU.
        value, norm = (float(number) for number in torch.stack([total, length.to(total)]).tolist())
        if not math.isfinite(value):
            raise NotFiniteError(f"the loss is {value}{self._culprits(pieces)}")
        if not math.isfinite(norm):
            raise NotFiniteError(f"the norm of the gradient is {norm}{self._culprits(pieces)}")
        self.optimizer.step()
        for keep in keeps:
            keep()
        return value

    def _differentiate(self, pieces: Sequence[Piece], keeps: list[Callable[[], object]]) -> Tensor:
        """Add the gradients of the pieces to those of the parameters; returns the loss, float64."""
        # Added up where they are: each number read from a GPU would make the program wait for it.
        values: list[Tensor] = []

        def work(examples: list[int], piece: Piece) -> None:
            # All or nothing, unlike backward(): memory may run out anywhere, and what is counted is counted once.
            value, keep = piece.loss(examples)
            gradients = self._gradients(value)
            values.append(value.detach().double())
            keeps.append(keep)
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient
                elif gradient is not None:
                    parameter.grad.add_(gradient)

        def lower(failed: list[int], piece: Piece) -> None:
            piece.budget.lower(sum(piece.edges[example] for example in failed))

        for piece in pieces:
            doing, failing = functools.partial(work, piece=piece), functools.partial(lower, piece=piece)
            halve_if_out_of_memory(doing, piece.examples, failing)
        return torch.stack(values).sum() if values else torch.zeros((), dtype=torch.float64)

    def _gradients(self, value: Tensor) -> list[Tensor | None]:
        if not value.requires_grad:  # every example of a piece had to be left out
            return [None] * len(self._parameters)
        found = torch.autograd.grad(value, self._parameters, allow_unused=True)
        # Autograd may hand out one tensor twice, or an expanded one; these are added to in place.
        return [None if g is None else g.clone(memory_format=torch.contiguous_format) for g in found]

    def _culprits(self, pieces: Sequence[Piece]) -> str:
        """Which examples have a loss or gradient that is not finite on their own, as part of a message."""
        found = self.processes.together(lambda: list(self._not_finite(pieces)))
        names = [name for part in self.processes.gather(found) for name in part]
        if not names:
            examples = [piece.describe(example) for piece in pieces for example in piece.examples]
            names = [name for part in self.processes.gather(examples) for name in part]
            return f", though that of no example alone is, in the step on {_some(names)}"
        return f" because of {_some(names)}"

    def _not_finite(self, pieces: Sequence[Piece]) -> Iterator[str]:
        for piece in pieces:
            for example in piece.examples:
                value = piece.loss([example]).value
                parts = [value, *(g for g in self._gradients(value) if g is not None)]
                if not all(bool(part.isfinite().all()) for part in parts):
                    yield piece.describe(example)

    def _sum(self, value: Tensor) -> Tensor:
        """Loss and gradients over all processes; a parameter that none of them used keeps no gradient."""
        if self.processes.size == 1:
            return value
        used = [0.0 if parameter.grad is None else 1.0 for parameter in self._parameters]
        total, *used = self.processes.total([float(value), *used])
        value = torch.tensor(total, dtype=torch.float64)
        if not math.isfinite(total):
            return value
        wanted = [parameter for parameter, count in zip(self._parameters, used, strict=True) if count]
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.processes.sum_([parameter.grad for parameter in wanted if parameter.grad is not None])
        return value


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + rest
