"""GradientDescent, FIRE and LBFGS with the arguments and the steps of ASE's optimizers."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from ase_finetune.errors import InputError
from ase_finetune.optimize.driver import Driver
from ase_finetune.optimize.fire import FIREStep
from ase_finetune.optimize.gradient_descent import GradientDescentStep
from ase_finetune.optimize.lbfgs import LBFGSStep
from ase_finetune.optimize.method import Scalar

#: Largest step in Å unless another one is asked for, as in ASE.
MAXSTEP = 0.2

File = str | Path | None


class GradientDescent(Driver):
    """Gradient descent x + step_size F, with momentum if wanted: the map of the BPTT paper.

    Parameters
    ----------
    step_size, momentum, maxstep
        As for :class:`GradientDescentStep`; a step size may be a tensor that requires gradients.
    atoms, restart, logfile, trajectory, differentiable, gradient, window, **kwargs
        As for :class:`Driver`.
    """

    def __init__(
        self,
        atoms: Any,
        restart: File = None,
        logfile: IO[str] | File = "-",
        trajectory: Any = None,
        step_size: Scalar = 0.01,
        momentum: float = 0.0,
        maxstep: float | None = MAXSTEP,
        *,
        differentiable: bool = False,
        gradient: str = "adjoint",
        window: int | None = None,
        **kwargs: Any,
    ) -> None:
        method = GradientDescentStep(step_size=step_size, momentum=momentum, maxstep=maxstep)
        options: dict[str, Any] = {"differentiable": differentiable, "gradient": gradient, "window": window}
        super().__init__(atoms, method, restart, logfile, trajectory, **options, **kwargs)


class FIRE(Driver):
    """:class:`ase.optimize.FIRE`, step for step, that can be differentiated.

    Parameters
    ----------
    dt, maxstep, dtmax, Nmin, finc, fdec, astart, fa, a
        As in ASE; those after ``maxstep`` by name only. ``dt`` may be a tensor that requires gradients.
    atoms, restart, logfile, trajectory, differentiable, gradient, window, **kwargs
        As for :class:`Driver`.

    Raises
    ------
    InputError
        For ``downhill_check``, ``position_reset_callback`` and ``maxmove``, which only ASE's class has.
    """

    def __init__(
        self,
        atoms: Any,
        restart: File = None,
        logfile: IO[str] | File = "-",
        trajectory: Any = None,
        dt: Scalar = 0.1,
        maxstep: float | None = None,
        *,
        dtmax: float = 1.0,
        Nmin: int = 5,  # noqa: N803  ASE's name
        finc: float = 1.1,
        fdec: float = 0.5,
        astart: float = 0.1,
        fa: float = 0.99,
        a: float = 0.1,
        differentiable: bool = False,
        gradient: str = "adjoint",
        window: int | None = None,
        **kwargs: Any,
    ) -> None:
        _refuse(kwargs, "ase.optimize.FIRE", "downhill_check", "position_reset_callback", "maxmove")
        limit = MAXSTEP if maxstep is None else maxstep
        method = FIREStep(dt=dt, maxstep=limit, dtmax=dtmax, Nmin=Nmin, finc=finc, fdec=fdec, astart=astart, fa=fa, a=a)
        options: dict[str, Any] = {"differentiable": differentiable, "gradient": gradient, "window": window}
        super().__init__(atoms, method, restart, logfile, trajectory, **options, **kwargs)


class LBFGS(Driver):
    """:class:`ase.optimize.LBFGS`, step for step, that can be differentiated.

    Parameters
    ----------
    maxstep, memory, damping, alpha
        As in ASE. ``alpha`` may be a tensor that requires gradients.
    atoms, restart, logfile, trajectory, differentiable, gradient, window, **kwargs
        As for :class:`Driver`.

    Raises
    ------
    InputError
        For ``use_line_search``, which only ASE's class has.
    """

    def __init__(
        self,
        atoms: Any,
        restart: File = None,
        logfile: IO[str] | File = "-",
        trajectory: Any = None,
        maxstep: float | None = None,
        memory: int = 100,
        damping: float = 1.0,
        alpha: Scalar = 70.0,
        *,
        differentiable: bool = False,
        gradient: str = "adjoint",
        window: int | None = None,
        **kwargs: Any,
    ) -> None:
        _refuse(kwargs, "ase.optimize.LBFGS", "use_line_search")
        limit = MAXSTEP if maxstep is None else maxstep
        method = LBFGSStep(alpha=alpha, maxstep=limit, memory=memory, damping=damping)
        options: dict[str, Any] = {"differentiable": differentiable, "gradient": gradient, "window": window}
        super().__init__(atoms, method, restart, logfile, trajectory, **options, **kwargs)


def _refuse(kwargs: dict[str, Any], peer: str, *names: str) -> None:
    """Raise for arguments of ASE's class that ask for something this one does not do."""
    for name in names:
        if kwargs.pop(name, None):
            raise InputError(f"{name} is not supported here; use {peer}")
