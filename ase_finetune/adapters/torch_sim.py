"""Our potentials as models of torch-sim: batched relaxations and molecular dynamics on one device.

torch-sim (https://github.com/TorchSim/torch-sim) needs Python 3.12 or newer: ``pip install torch-sim-atomistic``.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import torch
from ase.data import atomic_numbers
from torch import Tensor

from ase_finetune.adapters.moving_batch import MovingBatch
from ase_finetune.calculator import FinetunedCalculator
from ase_finetune.errors import BackendNotInstalledError, InputError
from ase_finetune.optimize.cell import full_stress
from ase_finetune.potentials import Potential

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages below it
        _interface: Any = importlib.import_module("torch_sim.models.interface")
except ImportError as error:
    raise BackendNotInstalledError(
        f"torch_sim does not import ({error}); on Python 3.12 or newer install it with: pip install torch-sim-atomistic"
    ) from error


class TorchSimModel(_interface.ModelInterface):  # type: ignore[misc]  # torch-sim is not there where types are checked
    """A potential as torch-sim wants it: energy, forces and stress of a batch of structures.

    Parameters
    ----------
    model
        A :class:`FinetunedCalculator` or a :class:`Potential`, which is shared; or whatever names one.
    device, dtype, head
        As of :class:`FinetunedCalculator`, for a model that is named. The states of the simulation must have the
        same device and dtype.
    skin
        Of the neighbour lists, Å. They are built only when an atom has moved half of it: on the CPU, or on a GPU by the
        library that ``pip install "ase_finetune[gpu]"`` brings.

    Raises
    ------
    InputError
        If the calculator is an ensemble; at evaluation, if a structure cannot be evaluated.

    Examples
    --------
    >>> import torch_sim as ts
    >>> model = TorchSimModel(FinetunedCalculator("runs/mine/model", dtype="float64"))
    >>> state = ts.optimize(list_of_atoms, model, optimizer=ts.Optimizer.fire)
    """

    def __init__(
        self,
        model: FinetunedCalculator | Potential | str | os.PathLike[str] = "7net-0",
        *,
        device: str = "auto",
        dtype: str = "float32",
        head: str | None = None,
        skin: float = 0.5,
    ) -> None:
        super().__init__()
        calculator = _calculator(model, device, dtype, head)
        if len(calculator.potentials) > 1:
            raise InputError("torch-sim runs single potentials; give one member of the ensemble")
        self.potential = calculator.potential
        self._device, self._dtype = self.potential.device, self.potential.dtype
        self._compute_stress = self._compute_forces = True
        self._memory_scales_with = "n_atoms_x_density"
        self.register_buffer("_offsets", _offsets(calculator).to(self._device), persistent=False)
        self._offsets: Tensor
        self._batch = MovingBatch(self.potential.cutoff, skin)
        self._checked: Tensor | None = None

    @property
    def compute_stress(self) -> bool:
        """Whether stresses are found."""
        return bool(self._compute_stress)

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = value

    @property
    def compute_forces(self) -> bool:
        """Whether forces are found."""
        return bool(self._compute_forces)

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        self._compute_forces = value

    @property
    def rebuilds(self) -> int:
        """Evaluations so far for which neighbour lists, of one structure or more, were built."""
        return self._batch.rebuilds

    def forward(self, state: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Evaluate a state of b structures with n atoms.

        Returns
        -------
        ``energy`` (b,) in eV, ``forces`` (n, 3) in eV/Å and ``stress`` (b, 3, 3) in eV/Å³ with ASE's sign, detached.
        """
        del kwargs  # torch-sim hands its models what other models want
        numbers, cell = state.atomic_numbers.long(), state.row_vector_cell
        self._check(state, numbers)
        pbc = state.pbc.expand(len(cell), 3)
        graph = self._batch.update(state.positions, cell, pbc, numbers, state.system_idx)
        with torch.no_grad():
            found = self.potential.predict(graph, forces=self._compute_forces, stress=self._compute_stress)
            offsets = self._offsets[numbers]
            energy = found.energy.index_add(0, state.system_idx, offsets.to(found.energy.dtype))
        results = {"energy": energy.detach()}
        if found.forces is not None:
            results["forces"] = found.forces.detach()
        if found.stress is not None:
            results["stress"] = full_stress(found.stress.detach())
        return results

    def _check(self, state: Any, numbers: Tensor) -> None:
        if state.positions.dtype != self._dtype or state.positions.device.type != self._device.type:
            here = f"{self._dtype} on {self._device}".removeprefix("torch.")
            there = f"{state.positions.dtype} on {state.positions.device}".removeprefix("torch.")
            raise InputError(f"the state is {there}, the model is {here}; make them alike")
        if self._checked is None or not torch.equal(self._checked, numbers):
            self.potential.check_numbers(numbers.tolist())
            self._checked = numbers


def _calculator(model: Any, device: str, dtype: str, head: str | None) -> FinetunedCalculator:
    if isinstance(model, FinetunedCalculator):
        return model
    if isinstance(model, Potential):
        return FinetunedCalculator(model)
    return FinetunedCalculator(model, device=device, dtype=dtype, head=head)


def _offsets(calculator: FinetunedCalculator) -> Tensor:
    """(120,) energies in eV by atomic number that ``reference="target"`` adds."""
    table = torch.zeros(120, dtype=torch.float64)
    if calculator.parameters["reference"] == "target":
        for symbol, offset in calculator.metadata["reference_offsets"].items():
            table[atomic_numbers[symbol]] = offset
    return table
