"""What a differentiable driver keeps of its steps, and the tensors that carry the gradient through them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.filters import FrechetCellFilter
from scipy.linalg import logm
from torch import Tensor

from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.errors import InputError
from ase_finetune.optimize.adjoint import Path, differentiate
from ase_finetune.optimize.cell import CellOptions
from ase_finetune.optimize.constraints import free_components
from ase_finetune.optimize.method import Method, State
from ase_finetune.optimize.relaxation import Relaxation, RelaxationState

#: Positions (Å) and cells that differ by more than rounding: somebody else has moved the atoms.
MOVED = 1e-6


def recorded_structure(target: Any) -> tuple[Atoms, CellOptions | None, FinetunedCalculator]:
    """The atoms, the options of their cell (``None`` if it is fixed) and the calculator to be differentiated.

    Parameters
    ----------
    target
        ``Atoms`` or a :class:`ase.filters.FrechetCellFilter` of ``Atoms``.

    Raises
    ------
    InputError
        If it is something else, has another calculator than one :class:`FinetunedCalculator` of one potential,
        or a constraint or mask that cannot be differentiated.
    """
    options: CellOptions | None = None
    atoms = target
    if isinstance(target, FrechetCellFilter):
        atoms, options = target.atoms, CellOptions.from_filter(target)
        _check_mask(target)
    if not isinstance(atoms, Atoms):
        raise InputError(f"differentiable=True takes Atoms or a FrechetCellFilter of Atoms, not {type(atoms).__name__}")
    free_components(atoms, cell=options is not None)
    return atoms, options, _single(atoms.calc)


class Recording:
    """The steps of one structure, from where it is now on.

    Parameters
    ----------
    target
        As for :func:`recorded_structure`.
    method
        The optimizer.
    state
        Its state, if it has one already (from a restart file).

    Attributes
    ----------
    path
        The steps so far.
    start_positions : (n, 3)
        Å, a leaf that gradients are found in.
    """

    def __init__(self, target: Any, method: Method[Any], state: State | None = None) -> None:
        self._atoms, options, self._calculator = recorded_structure(target)
        potential = self._calculator.potential
        deformation, logarithm = _deformation(target)
        undeformed = _undeformed(self._atoms, target, deformation)
        self._relaxation = Relaxation(potential, method, [undeformed], options)
        self.start_positions = torch.tensor(
            self._atoms.positions, dtype=torch.float64, device=potential.device, requires_grad=True
        )
        rows = self._rows(deformation, logarithm)
        layout = self._relaxation.coordinates.layout
        begun = method.start(rows, layout) if state is None else _on(state, potential.device)
        self._start = RelaxationState(rows, begun)
        self.path = Path(self._relaxation, [self._start.detached()])
        self._versions = [parameter._version for parameter in self.path.parameters()]

    def record(self, displacement: Tensor, state: State) -> None:
        """Add a step that was found at the present coordinates.

        Parameters
        ----------
        displacement : (N, 3)
            Of the coordinates, Å.
        state
            Of the optimizer after the step.

        Raises
        ------
        InputError
            If the structure is not where the last step left it, or has exploded.
        """
        self._check_parameters()
        before = self.path.states[-1]
        self._check_place(before)
        graph, failures = self._relaxation.graph(before)
        if graph is None:
            raise InputError(failures[0])
        device = before.coordinates.device
        self.path.record(graph, None, RelaxationState(before.coordinates + displacement.to(device), _on(state, device)))

    def structure(self, *, window: int | None, unrolled: bool) -> tuple[RelaxationState, Tensor, Tensor]:
        """The final state, positions (n, 3) and cell (3, 3) with the gradient through the (last) steps."""
        self._check_parameters()
        first = 0 if window is None else max(0, self.path.num_steps - window)
        state = differentiate(self.path, self._start, first=first, unrolled=unrolled)
        positions, cells = self._relaxation.coordinates.structure(state.coordinates)
        return state, positions, cells[0]

    def energy(self, positions: Tensor, cell: Tensor) -> Tensor:
        """The potential energy in eV, as the calculator gives it, of the final structure."""
        graph, failures = self._relaxation.graph(self.path.states[-1])
        if graph is None:
            raise InputError(failures[0])
        potential = self._calculator.potential
        graph = graph.replace(positions=positions, cell=cell[None])
        energies = potential.energies(graph).double()
        return energies.sum() + float(np.sum(self._calculator.reference_energies(self._atoms)))

    def _rows(self, deformation: Tensor | None, logarithm: Tensor | None) -> Tensor:
        coordinates = self._relaxation.coordinates
        if deformation is None or logarithm is None:
            return coordinates.rows(self.start_positions)
        inverse = torch.linalg.inv(deformation).to(self.start_positions.device)
        on_cell = logarithm.to(inverse.device) * coordinates.factor
        return torch.cat([self.start_positions @ inverse.T, on_cell])

    def _check_parameters(self) -> None:
        if [parameter._version for parameter in self.path.parameters()] != self._versions:
            raise InputError(
                "parameters of the potential or the step size have changed since the relaxation began; "
                "relax again with a new optimizer"
            )

    def _check_place(self, state: RelaxationState) -> None:
        positions, cells = self._relaxation.coordinates.structure(state.coordinates)
        away = np.abs(self._atoms.positions - positions.cpu().numpy()).max(initial=0.0)
        away = max(away, np.abs(self._atoms.cell[:] - cells[0].cpu().numpy()).max())
        if not away <= MOVED:
            raise InputError(
                f"the structure is {away:.1e} Å from where the optimizer left it, so its steps cannot be "
                "differentiated; make a new optimizer after changing positions or cell"
            )


def _single(calculator: Any) -> FinetunedCalculator:
    if not isinstance(calculator, FinetunedCalculator):
        found = "the atoms have no calculator" if calculator is None else f"this is {type(calculator).__name__}"
        raise InputError(
            f"differentiable=True needs a FinetunedCalculator, {found}; "
            "set atoms.calc = FinetunedCalculator(model) or leave differentiable=False"
        )
    if len(calculator.potentials) > 1:
        raise InputError(
            f"differentiable=True needs one potential, this FinetunedCalculator is an ensemble of "
            f"{len(calculator.potentials)}; make one of its members: FinetunedCalculator(calc.potentials[0])"
        )
    return calculator


def _check_mask(filtered: FrechetCellFilter) -> None:
    """Refuse masks of which ASE cuts something off the deformation that its forces do not know of."""
    mask = np.asarray(filtered.mask, dtype=bool)
    reached = mask.astype(int) @ mask.astype(int) > 0
    if (mask != mask.T).any() or (reached & ~mask).any():
        raise InputError(
            f"the filter's mask {mask.astype(int).tolist()} cannot be differentiated: it must free with every "
            "shear both of its axes, and with two shears the third"
        )


def _deformation(target: Any) -> tuple[Tensor | None, Tensor | None]:
    """F and log F of a filter whose cell is not its original one any more; ``None`` if it is."""
    if not isinstance(target, FrechetCellFilter) or np.array_equal(target.orig_cell, target.atoms.cell[:]):
        return None, None
    deformation = np.asarray(target.deform_grad())
    logarithm = np.asarray(logm(deformation))
    if np.iscomplexobj(logarithm) or not np.isfinite(logarithm).all():
        raise InputError(f"the cell cannot be reached from the filter's orig_cell: its deformation is {deformation}")
    if np.abs(logarithm * ~np.asarray(target.mask, dtype=bool)).max() > MOVED:
        raise InputError("the cell differs from the filter's orig_cell in strains that its mask forbids")
    return torch.as_tensor(deformation), torch.as_tensor(logarithm)


def _undeformed(atoms: Atoms, target: Any, deformation: Tensor | None) -> Atoms:
    """A copy in the filter's original cell, with the constraints."""
    copied = atoms.copy()
    if deformation is not None:
        copied.cell[:] = target.orig_cell
        copied.positions[:] = np.linalg.solve(deformation.numpy(), atoms.positions.T).T
    return copied


def _on(state: State, device: torch.device) -> State:
    return state.with_tensors([tensor.detach().to(device) for tensor in state.tensors()])
