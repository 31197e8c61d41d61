"""Drivers that are ASE optimizers: logfile, trajectory, observers and restart round a pure step function."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path as FilePath
from typing import IO, Any

import ase
import numpy as np
import torch
from ase.filters import UnitCellFilter
from ase.io.jsonio import read_json
from ase.optimize.optimize import Optimizer
from torch import Tensor

from ase_finetune.errors import InputError
from ase_finetune.optimize.adjoint import Path
from ase_finetune.optimize.layout import Layout
from ase_finetune.optimize.method import Method, State, StateT
from ase_finetune.optimize.recording import Recording, recorded_structure

GRADIENTS = ("adjoint", "unrolled", "truncated")

#: ``Optimizable.get_gradient`` returned forces up to ASE 3.26 and returns minus the forces since.
_FORCES_PER_GRADIENT = 1.0 if tuple(int(part) for part in ase.__version__.split(".")[:2]) < (3, 27) else -1.0

#: A constraint or filter has changed a step by more than rounding, Å.
_OTHERWISE = 1e-8


class Driver(Optimizer):  # type: ignore[misc]  # ASE carries no type information
    """Base of the drivers: everything about them that does not depend on the method.

    Parameters
    ----------
    atoms
        ``Atoms``, or any filter or ``Optimizable`` of ASE.
    method
        The step function.
    restart
        JSON file with the complete state of the method, written after every step and read, where it exists,
        at the beginning: the run goes on bit for bit (where the calculator does not depend on its own past, as
        a neighbour list with a skin does in the last digit). With a filter of the cell it holds the original
        cell too, and sets it.
    logfile, trajectory, **kwargs
        As for :class:`ase.optimize.optimize.Optimizer`.
    differentiable
        Record the steps, so that :attr:`positions`, :attr:`cell` and :attr:`energy` carry the gradient by the
        potential's parameters, :attr:`start_positions` and a step size given as a tensor.
        Needs a :class:`FinetunedCalculator` of one potential, and ``Atoms`` or a
        :class:`ase.filters.FrechetCellFilter`; of the constraints only ``FixAtoms`` and ``FixCartesian``.
        Otherwise any calculator will do, and constraints are ASE's own business.
    gradient
        ``"adjoint"`` (exact, in the memory of one step), ``"unrolled"`` (exact, all graphs at once) or
        ``"truncated"`` (exact over the last ``window`` steps; those before are passed over).
    window
        Steps of ``"truncated"``.

    Raises
    ------
    InputError
        If an argument or what is to be differentiated cannot be used, a restart file is not one of this
        optimizer and structure; during a run, if forces are not finite, or if a recorded structure is moved by
        others or its cell collapses.
    """

    def __init__(
        self,
        atoms: Any,
        method: Method[Any],
        restart: str | FilePath | None,
        logfile: IO[str] | FilePath | str | None,
        trajectory: Any,
        *,
        differentiable: bool,
        gradient: str,
        window: int | None,
        **kwargs: Any,
    ) -> None:
        _check_gradient(differentiable, gradient, window)
        if differentiable:
            # The parameters may have been trained since the calculator has last seen this structure.
            recorded_structure(atoms)[2].reset()
        self.method = method
        self.differentiable = differentiable
        self._unrolled, self._window = gradient == "unrolled", window
        self._recording: Recording | None = None
        self._final: tuple[Tensor, Tensor] | None = None
        self._state: State | None = None
        self._layout: Layout | None = None
        if getattr(method, "maxstep", None) is not None:
            self.maxstep = float(method.maxstep)  # type: ignore[attr-defined]
        super().__init__(atoms, restart, logfile, trajectory, **kwargs)

    def step(self) -> None:
        """One step of the method, at the forces that the calculator gives now."""
        forces = self._forces()
        layout = self._rows(len(forces))
        with torch.no_grad():
            state = self.method.start(forces, layout) if self._state is None else self._state
            displacement, state = self.method.step(state, forces, layout)
        if self.differentiable:
            self._record(displacement, state)
        x = self.optimizable.get_x()
        self.optimizable.set_x(x + displacement.numpy().ravel())
        made = torch.as_tensor(self.optimizable.get_x() - x).reshape(-1, 3)
        self._state = _as_made(state, displacement, made)
        self._dump_state()

    @property
    def positions(self) -> Tensor:
        """(n, 3) final positions in Å, float64, with the gradient through the steps.

        Like :attr:`cell` and :attr:`energy` built when asked for, and anew after a step or a backward pass.
        """
        return self._structure("positions")[0]

    @property
    def cell(self) -> Tensor:
        """(3, 3) final cell vectors in Å, float64, with the gradient through the steps."""
        return self._structure("cell")[1]

    @property
    def energy(self) -> Tensor:
        """Potential energy in eV of the final structure, without dimensions, float64; no pressure term.

        Its gradient goes through the structure and, directly, to the parameters.
        """
        positions, cell = self._structure("energy")
        return self._recorded("energy").energy(positions, cell)

    @property
    def start_positions(self) -> Tensor:
        """(n, 3) positions in Å before the first recorded step: a leaf that gradients are found in."""
        return self._recorded("start_positions").start_positions

    @property
    def path(self) -> Path:
        """The recorded steps; its ``gradient_norms`` are known after a backward pass of ``"adjoint"``."""
        return self._recorded("path").path

    def read(self) -> None:
        """Take the state from the restart file."""
        if self.method.parameters():
            raise InputError("a step size that requires gradients cannot start from a restart file")
        found = _read_restart(FilePath(self.restart))
        rows = self.optimizable.ndofs() // 3
        _check_restart(found, self.restart, self.method.name, rows)
        blank: State = self.method.start(torch.zeros((rows, 3), dtype=torch.float64), self._rows(rows))
        arrays = [np.asarray(found["state"][item.name]) for item in dataclasses.fields(blank)]
        self._state = blank.with_tensors([torch.as_tensor(array) for array in arrays])
        if found["orig_cell"] is not None and isinstance(self.atoms, UnitCellFilter):
            # A filter made from the structure of a trajectory counts its deformation from there.
            self.atoms.orig_cell = np.asarray(found["orig_cell"])

    def _dump_state(self) -> None:
        if self.restart is None or self._state is None:
            return
        names = [item.name for item in dataclasses.fields(self._state)]
        arrays = [tensor.numpy() for tensor in self._state.tensors()]
        self.dump(
            {
                "optimizer": self.method.name,
                "rows": self.optimizable.ndofs() // 3,
                "orig_cell": np.array(self.atoms.orig_cell) if isinstance(self.atoms, UnitCellFilter) else None,
                "state": dict(zip(names, arrays, strict=True)),
            }
        )

    def _forces(self) -> Tensor:
        gradient = np.asarray(self.optimizable.get_gradient(), dtype=np.float64)
        forces = torch.tensor(_FORCES_PER_GRADIENT * gradient).reshape(-1, 3)
        broken = (~forces.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if broken:
            raise InputError(
                f"after {self.nsteps} steps of {type(self).__name__} the forces on rows {broken[:5]} are not finite; "
                "the structure has exploded (take smaller steps) or the potential cannot describe it"
            )
        return forces

    def _rows(self, count: int) -> Layout:
        """All rows of coordinates belong to one structure."""
        if self._layout is None or len(self._layout.owner) != count:
            self._layout = Layout(torch.zeros(count, dtype=torch.int64), 1)
        return self._layout

    def _record(self, displacement: Tensor, state: State) -> None:
        try:
            self._recorded("step").record(displacement, state)
        except InputError as error:
            raise InputError(f"after {self.nsteps} steps of {type(self).__name__}: {error}") from error
        self._final = None

    def _recorded(self, name: str) -> Recording:
        if not self.differentiable:
            raise InputError(f"{name} carries gradients: make the optimizer with differentiable=True")
        if self._recording is None:
            self._recording = Recording(self.atoms, self.method, self._state)
        return self._recording

    def _structure(self, name: str) -> tuple[Tensor, Tensor]:
        recording = self._recorded(name)
        if self._final is None:
            state, *final = recording.structure(window=self._window, unrolled=self._unrolled)
            # A backward pass frees the graph behind these tensors: the next one needs new ones.
            state.coordinates.register_hook(self._forget)
            self._final = (final[0], final[1])
        return self._final

    def _forget(self, gradient: Tensor) -> None:
        del gradient
        self._final = None


def _check_gradient(differentiable: bool, gradient: str, window: int | None) -> None:
    if gradient not in GRADIENTS:
        raise InputError(f"gradient must be one of {', '.join(map(repr, GRADIENTS))}, got {gradient!r}")
    if not differentiable and (gradient != "adjoint" or window is not None):
        raise InputError("gradient and window are options of differentiable=True")
    if (gradient == "truncated") != (window is not None):
        raise InputError(f"window belongs to gradient='truncated', got gradient={gradient!r} and window={window}")
    if window is not None and window < 1:
        raise InputError(f"window must be at least one step, got {window}")


def _as_made(state: StateT, displacement: Tensor, made: Tensor) -> StateT:
    """Remember the step that a constraint or filter let through, as ASE's LBFGS does, not the one that was meant."""
    if not hasattr(state, "displacement") or torch.allclose(made, displacement, rtol=0, atol=_OTHERWISE):
        return state
    names = [item.name for item in dataclasses.fields(state)]
    return state.with_tensors([made if name == "displacement" else getattr(state, name) for name in names])


def _read_restart(path: FilePath) -> Any:
    try:
        with path.open() as file:
            return read_json(file, always_array=False)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"the restart file {path} cannot be read; delete it to start afresh") from error


def _check_restart(found: Any, path: Any, name: str, rows: int) -> None:
    if not isinstance(found, dict) or not {"optimizer", "rows", "orig_cell", "state"} <= found.keys():
        raise InputError(f"the restart file {path} was not written by this package; delete it to start afresh")
    if found["optimizer"] != name:
        raise InputError(f"the restart file {path} is of the optimizer {found['optimizer']!r}, not of {name!r}")
    if found["rows"] != rows:
        raise InputError(
            f"the restart file {path} is of a structure with {found['rows']} rows of coordinates (atoms, and three "
            f"of a variable cell), not {rows}"
        )
