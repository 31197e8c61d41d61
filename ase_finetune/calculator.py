"""FinetunedCalculator: pretrained and fine-tuned potentials as an ASE calculator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from tqdm import tqdm

from ase_finetune.errors import InputError, OutputExistsError
from ase_finetune.files import is_there
from ase_finetune.graphs import AtomGraph
from ase_finetune.graphs.kept import KeptGraph
from ase_finetune.potentials import Potential, load_potential, save_potential
from ase_finetune.potentials.base import Prediction, on_host
from ase_finetune.potentials.batched import DEFAULT_MAX_EDGES, predict_many
from ase_finetune.potentials.capture import Evaluator, check_accelerate
from ase_finetune.potentials.devices import resolve_device, resolve_dtype
from ase_finetune.potentials.formats import members_in
from ase_finetune.representations import calculator_table

Model = str | os.PathLike[str] | Potential


class FinetunedCalculator(Calculator):  # type: ignore[misc]  # ASE carries no type information
    """ASE calculator over pretrained and fine-tuned interatomic potentials.

    Parameters
    ----------
    model
        A name (``"7net-0"``, ``"mace-mpa-0"``, ...; see :func:`ase_finetune.list_models`), a folder
        written by :meth:`save`, the output folder of a finished run, a SevenNet or MACE checkpoint, or a
        :class:`Potential`, which is shared and stays on its device and in its dtype. A list of these is an
        ensemble, as is the output folder of ``finetune(members=...)``: results are means, and :attr:`spread` holds
        the standard deviations.
    device
        ``"auto"`` takes a GPU where there is one; otherwise a torch device name.
    dtype
        ``"float32"`` (MD) or ``"float64"`` (relaxations, phonons, finite differences).
    head
        Head or modality of models that have several.
    reference
        Energies in the reference of the pretrained ``"model"``, or of the ``"target"`` data it was
        fine-tuned on: the per-element offsets found by ``finetune`` are then added back.
    skin
        Verlet skin in Å: the neighbour list is rebuilt only when an atom has moved half of it. It saves
        time in MD and relaxations; set 0 when every structure is new.
    accelerate
        ``"graph"`` records the evaluation once as a CUDA graph and replays it, which saves a GPU from waiting for the
        program where systems are small; ``"auto"`` does so on a GPU where it gives the same numbers; ``"none"`` never.
    trust_pickle
        Allow loading a MACE ``.model`` file that is not known as an official one: it can execute code.
    **kwargs
        Passed to :class:`ase.calculators.calculator.Calculator`.

    Raises
    ------
    ase_finetune.errors.UnknownModelError, ModelNotAvailableError, CheckpointError
        If the model cannot be had.
    InputError
        If an argument is not usable; at evaluation, if a structure is not (unknown element, positions
        that are not finite or coincide, a periodic cell without volume).

    Examples
    --------
    >>> from ase.build import bulk
    >>> atoms = bulk("Si")
    >>> atoms.calc = FinetunedCalculator("7net-0")
    >>> energy = atoms.get_potential_energy()  # eV
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "energies", "forces", "stress"]
    default_parameters: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        model: Model | Sequence[Model] = "7net-0",
        *,
        device: str = "auto",
        dtype: str = "float32",
        head: str | None = None,
        reference: str = "model",
        skin: float = 0.5,
        accelerate: str = "auto",
        trust_pickle: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if reference not in ("model", "target"):
            raise InputError(f"reference must be 'model' or 'target', got {reference!r}")
        models = _models(model)
        where, kind = resolve_device(device), resolve_dtype(dtype)
        loaded = [load_potential(m, head=head, device=where, dtype=kind, trust_pickle=trust_pickle) for m in models]
        self.potentials: list[Potential] = [potential for potential, _ in loaded]
        _check_members(self.potentials, device, dtype)
        self._device = self.potential.device
        #: Origin of the model: base model, configuration, versions, errors, reference offsets.
        self.metadata: dict[str, Any] = loaded[0][1]
        #: Epochs of the fine-tuning that made this calculator (empty otherwise).
        self.history: list[dict[str, Any]] = []
        #: Standard deviation over an ensemble of the last energy (eV), forces (eV/Å) and stress (eV/Å³).
        self.spread: dict[str, Any] = {}
        names = [_name(m) for m in models]
        # Strings and numbers only: ASE writes the parameters into trajectories.
        self.parameters.update(
            model=names[0] if len(names) == 1 else names,
            device=str(self._device),
            dtype=str(self.potential.dtype).removeprefix("torch."),
            head=self.potential.head,
            reference=reference,
            skin=skin,
            accelerate=accelerate,
        )
        if reference == "target" and "reference_offsets" not in self.metadata:
            raise InputError("reference='target' needs a model fine-tuned with reference='align'; this one is not")
        check_accelerate(accelerate, self.potentials)
        self._graph = KeptGraph(max(p.cutoff for p in self.potentials), skin, self._device)
        self._evaluator = Evaluator(self.potentials, accelerate)
        self._checked: Any = None  # atomic numbers that all members know

    def __repr__(self) -> str:
        named = ("model", "device", "dtype", "head", "reference")
        values = {name: self.parameters[name] for name in named if self.parameters[name] not in (None, "model")}
        # Of a fine-tuning that kept no epoch: whoever prints the calculator should see it.
        note = " (unchanged by its fine-tuning)" if self.metadata.get("unchanged") else ""
        return f"FinetunedCalculator({', '.join(f'{name}={value!r}' for name, value in values.items())}){note}"

    def _repr_html_(self) -> str:
        """What the calculator is and how well it does, for a notebook."""
        return calculator_table(self.potential, self.parameters, self.metadata)

    @property
    def potential(self) -> Potential:
        """The (first) potential behind the calculator."""
        return self.potentials[0]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Everything there is to know about ``atoms``, in one evaluation whatever is asked first.

        Parameters
        ----------
        atoms
            The structure; the one of the last call if ``None``.
        properties
            What is asked for, as in ASE; if it has ``"stress"`` the cell must have a volume.
        system_changes
            What differs from the last structure, as ASE found it.

        Raises
        ------
        InputError
            If the structure cannot be evaluated.
        ase.calculators.calculator.PropertyNotImplementedError
            If the stress is asked for and the cell has no volume.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        structure = self.atoms
        if structure is None:
            raise InputError("there are no atoms to evaluate; give them as atoms.calc = calculator")
        if not np.array_equal(self._checked, structure.numbers):
            self._check_elements(structure.numbers)
            self._checked = structure.numbers.copy()
        with torch.inference_mode(False):  # tensors of that mode could not be kept for steps outside
            predictions = on_host(self._evaluator(self._graph.update(structure)))
        members = [self.results_of(prediction, structure) for prediction in predictions]
        self.results = _mean(members)
        self.spread = _spread(members) if len(members) > 1 else {}
        if "stress" in properties and "stress" not in self.results:
            raise PropertyNotImplementedError(f"stress needs a cell with a volume, this one is {structure.cell}")

    def calculate_many(
        self, structures: Sequence[Atoms], *, max_edges: int = DEFAULT_MAX_EDGES, progress: bool = False
    ) -> list[dict[str, Any]]:
        """Evaluate many structures in batches.

        Parameters
        ----------
        structures
            Any sizes, elements and periodicities.
        max_edges
            Bound of one batch; lower it when memory runs out.
        progress
            Show a progress bar.

        Returns
        -------
        One results dictionary per structure, as ``calc.results`` after a single evaluation.

        Raises
        ------
        InputError
            If a structure cannot be evaluated; its position in the list is named.
        """
        graphs = [self._single_graph(index, atoms) for index, atoms in enumerate(structures)]
        members = []
        self._evaluator.forget()  # large batches may need the memory
        for potential in self.potentials:
            with tqdm(total=len(graphs), disable=not progress, unit="structure") as bar:
                predictions = predict_many(potential, graphs, max_edges=max_edges, on_structure=bar.update)
            members.append([self.results_of(p, atoms) for p, atoms in zip(predictions, structures, strict=True)])
        return [_mean(list(results)) for results in zip(*members, strict=True)]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a folder that ``FinetunedCalculator(path)`` loads again, bit for bit.

        Raises
        ------
        OutputExistsError
            If ``path`` exists and ``overwrite`` is not set.
        OutputError
            If it cannot be written; an earlier potential there is as it was.
        """
        save_potential(self._single(), Path(path), metadata=self.metadata, overwrite=overwrite)

    def export(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the backend's own checkpoint: for SevenNetCalculator, MACECalculator, LAMMPS.

        The reference offsets are not part of it; energies are in the pretrained model's reference.

        Parameters
        ----------
        path
            The file, ``.pth`` for SevenNet and ``.model`` for MACE.
        overwrite
            Replace an earlier file.

        Raises
        ------
        OutputExistsError
            If ``path`` exists and ``overwrite`` is not set.
        OutputError
            If it cannot be written.
        InputError
            Of an ensemble, which has no single file.
        """
        potential, file = self._single(), Path(path)
        if is_there(file) and not overwrite:
            raise OutputExistsError(f"{file} exists; choose another name or pass overwrite=True")
        potential.save_native(file)

    def _single_graph(self, index: int, atoms: Atoms) -> AtomGraph:
        try:
            self._check_elements(atoms.numbers)
            return AtomGraph.from_atoms(atoms, self._graph.neighbors.cutoff)
        except InputError as error:
            raise InputError(f"structure {index}: {error}") from error

    def _check_elements(self, numbers: Any) -> None:
        for potential in self.potentials:
            potential.check_numbers(numbers)

    def results_of(self, prediction: Prediction, atoms: Atoms) -> dict[str, Any]:
        """The results dictionary of one structure from a potential's prediction for it.

        Parameters
        ----------
        prediction
            Of this structure alone, n atoms, on the CPU.
        atoms
            The structure.

        Returns
        -------
        ``energies`` (n,), ``energy`` and ``free_energy`` in eV, ``forces`` (n, 3) in eV/Å, ``stress`` (6,) in eV/Å³
        where the prediction has them.
        """
        energies = prediction.energies.double().numpy() + self.reference_energies(atoms)
        results: dict[str, Any] = {"energies": energies, "energy": float(energies.sum())}
        results["free_energy"] = results["energy"]
        if prediction.forces is not None:
            results["forces"] = prediction.forces.double().numpy()
        if prediction.stress is not None and atoms.cell.rank == 3:
            results["stress"] = prediction.stress[0].double().numpy()
        return results

    def reference_energies(self, atoms: Atoms) -> Any:
        """(n,) energies in eV that ``reference="target"`` adds to the model's own, 0 otherwise.

        Parameters
        ----------
        atoms
            n atoms.
        """
        if self.parameters["reference"] == "model":
            return 0.0
        offsets = self.metadata.get("reference_offsets", {})
        return np.array([offsets.get(symbol, 0.0) for symbol in atoms.get_chemical_symbols()])

    def _single(self) -> Potential:
        if len(self.potentials) > 1:
            raise InputError("an ensemble has no single file; save its members one by one")
        return self.potential


def _models(model: Model | Sequence[Model]) -> list[Model]:
    """One model, or the members of an ensemble: of a list, or in the output folder of one."""
    if isinstance(model, Sequence) and not isinstance(model, str):
        if not model:
            raise InputError("the list of models is empty")
        return list(model)
    members = [] if isinstance(model, Potential) else members_in(Path(model))
    return list(members) or [model]


def _check_members(potentials: Sequence[Potential], device: str, dtype: str) -> None:
    """Refuse what was asked for and cannot be had of a given potential, and ensembles of mixed kinds."""
    kinds = {f"{potential.dtype} on {potential.device}".removeprefix("torch.") for potential in potentials}
    if len(kinds) > 1:
        raise InputError(f"the members of an ensemble must be alike, these are {', '.join(sorted(kinds))}")
    where, asked = potentials[0].device, resolve_device(device)
    elsewhere = device != "auto" and (asked.type, asked.index or 0) != (where.type, where.index or 0)
    if elsewhere or (dtype == "float64" and potentials[0].dtype != torch.float64):
        raise InputError(
            f"device={device!r}, dtype={dtype!r} was asked for, but the given potential is {kinds.pop()}; "
            "move it there with .to() first"
        )


def _name(model: Model) -> str:
    return f"a {model.backend} potential" if isinstance(model, Potential) else os.fspath(model)


def _mean(members: list[dict[str, Any]]) -> dict[str, Any]:
    if len(members) == 1:
        return members[0]
    return {name: np.mean([member[name] for member in members], axis=0) for name in members[0]}


def _spread(members: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.std([member[name] for member in members], axis=0) for name in members[0]}
