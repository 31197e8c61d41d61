"""Options of training through relaxations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ase_finetune.errors import InputError
from ase_finetune.optimize.batched import build_method
from ase_finetune.optimize.method import Method, Scalar, check_positive
from ase_finetune.options import check_types
from ase_finetune.representations import brief
from ase_finetune.trajectories.implicit import FixedPointSolver
from ase_finetune.trajectories.losses import StructureLoss
from ase_finetune.trajectories.rollout import GradientKind, GradientOptions


@dataclass(frozen=True, repr=False)
class RelaxationConfig:
    """How relaxations are trained on (``method="bptt"`` and its combinations).

    Parameters
    ----------
    epochs, batch_size, learning_rate
        As those for frames; an example is a pair of structures. The defaults suit tens of pairs; with hundreds, halve
        the learning rate.
    optimizer
        ``"fire"``, ``"lbfgs"`` or ``"gradient-descent"``: the map that is iterated.
    steps
        Steps of a rollout. From the relaxed structures of crystals with up to six atoms, 10 steps go most of the way to
        where the relaxation ends; the cells of larger ones need more.
    step_size
        First time step of FIRE, step in Å²/eV of gradient descent, curvature in eV/Å² of LBFGS; ``None`` for the
        optimizer's default, but 0.2 for FIRE, twice its own: a rollout has few steps.
    momentum
        Of gradient descent.
    train_step_size
        Train the logarithm of the step size too (it is not part of the result).
    step_size_learning_rate
        Learning rate of that logarithm.
    start
        Where rollouts start: at the ``"relaxed"`` structures, which they shall not leave (the same minimum by a
        shorter way), at the ``"initial"`` ones, as in the paper, or ``"both"`` (two examples per pair).
    cell
        Whether cells relax; ``None``: if they do in the pairs.
    gradient, window
        See :class:`ase_finetune.trajectories.GradientOptions`.
    fmax
        Structures whose forces are below (eV/Å) stop early; for ``"implicit"`` and ``"guided"`` the
        bound of a fixed point. ``None``: none, and 0.02.
    loss
        On the final structures.
    robust
        Loss s of a structure beyond which it counts logarithmically, s ln(1 + loss/s), so that those which end in
        another basin do not decide the step; ``None`` for none.
    weight
        Of this loss beside the EWC penalty, and beside replay in ``joint`` steps.
    clip_norm
        Largest norm of the gradient by the parameters, penalty included; ``None`` for no clipping.
    clip_growth
        Largest growth of a structure's gradient on its way back through the steps, beyond which it is scaled
        down; ``None`` for no bound.
    max_edges
        Largest number of edges relaxed at once; ``None`` is 4000 on a CPU and 50 000 on a GPU.
    valid_fmax, valid_steps
        Validation relaxes held-out structures until all forces are below (eV/Å), or so many steps.
    """

    epochs: int = 6
    batch_size: int = 2
    learning_rate: float = 1e-3
    optimizer: Literal["fire", "lbfgs", "gradient-descent"] = "fire"
    steps: int = 10
    step_size: float | None = None
    momentum: float = 0.0
    train_step_size: bool = False
    step_size_learning_rate: float = 1e-2
    start: Literal["initial", "relaxed", "both"] = "relaxed"
    cell: bool | None = None
    gradient: GradientKind = "adjoint"
    window: int = 5
    fmax: float | None = None
    loss: StructureLoss = field(default_factory=StructureLoss)
    robust: float | None = 0.1
    weight: float = 1.0
    clip_norm: float | None = 10.0
    clip_growth: float | None = 100.0
    max_edges: int | None = None
    valid_fmax: float = 0.05
    valid_steps: int = 500

    def __post_init__(self) -> None:
        check_types(self, "bptt.")
        for name in _POSITIVE:
            if getattr(self, name) is not None:
                check_positive(f"bptt.{name}", getattr(self, name))
        if self.momentum and self.optimizer != "gradient-descent":
            raise InputError(f"momentum is an option of gradient-descent, not of {self.optimizer}")
        if self.train_step_size and self.gradient == "implicit":
            raise InputError("the implicit gradient does not depend on the step size, so it cannot train it")
        if self.gradient == "truncated" and self.fmax is not None:
            raise InputError(
                "gradient='truncated' goes through the last steps, which all structures must make: no fmax"
            )
        self.method()  # an optimizer refuses what it cannot use

    def __repr__(self) -> str:
        return brief(self)

    def method(self, step_size: Scalar | None = None) -> Method[Any]:
        """The optimizer, with another step size if one is given."""
        options: dict[str, Any] = {"momentum": self.momentum} if self.momentum else {}
        method = build_method(self.optimizer, **options)
        value = self.step_size if step_size is None else step_size
        if value is None and self.optimizer == "fire":
            value = _FIRE_TIME_STEP
        return method if value is None else method.with_step_size(value)

    def gradient_options(self) -> GradientOptions:
        """How the gradient of the final structures is taken."""
        solver = FixedPointSolver(fmax=self.fmax or 0.02, tolerance=0.03, max_iterations=60, on_failure="drop")
        return GradientOptions(self.gradient, window=self.window, solver=solver, clip_growth=self.clip_growth)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> RelaxationConfig:
        """Options by name; ``loss`` may be a dictionary.

        Raises
        ------
        InputError
            If an option does not exist or its value is not usable.
        """
        values = dict(options)
        try:
            if isinstance(values.get("loss"), Mapping):
                values["loss"] = StructureLoss(**values["loss"])
            return cls(**values)
        except TypeError as error:
            raise InputError(f"options of bptt: {error}") from error


# First time step of rollouts: 10 steps of 0.2 get as far as 15 of 0.1, see "What it gains" in docs/relaxations.md.
_FIRE_TIME_STEP = 0.2

_POSITIVE = """
    epochs batch_size learning_rate steps step_size step_size_learning_rate window fmax robust weight clip_norm
    clip_growth max_edges valid_fmax valid_steps
    """.split()
