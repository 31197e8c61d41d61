"""The code of others that ours is measured against; import their packages only after one of our loaders has run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ase import Atoms

from ase_finetune.potentials.imports import import_backend
from benchmarks.inputs import MODEL, RATE

_SEVENN, _MACE = "'ase_finetune[sevenn]'", "'ase_finetune[mace]'"


def sevennet_calculator(device: torch.device) -> Any:
    """Sevenn's own ASE calculator of 7net-0."""
    return import_backend("sevenn.calculator", _SEVENN).SevenNetCalculator(MODEL, device=str(device))


def mace_calculator(native: torch.nn.Module, device: torch.device) -> Any:
    """MACE's own ASE calculator; it freezes its model, hence a copy."""
    calculators = import_backend("mace.calculators", _MACE)
    return calculators.MACECalculator(models=copy.deepcopy(native), device=str(device), default_dtype="float32")


def sevennet_epoch(structures: Sequence[Atoms], size: int, stress: bool, device: torch.device) -> Callable[[], None]:
    """Sevenn's trainer: one step on each batch of ``size`` structures, in order."""
    made, loader, recorder = _sevennet(structures, size, stress, device)

    def epoch() -> None:
        made.run_one_epoch([batch.clone() for batch in loader], is_train=True, error_recorder=recorder)

    return epoch


def sevennet_fisher(structures: Sequence[Atoms], device: torch.device) -> Callable[[], dict[str, torch.Tensor]]:
    """The published way with sevenn's model and loss: squared gradients of one structure after the other."""
    made, loader, _ = _sevennet(structures, 1, True, device)

    def fisher() -> dict[str, torch.Tensor]:
        named = {name: p for name, p in made.model.named_parameters() if p.requires_grad}
        sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        for batch in loader:
            output = made.model(batch.clone().to(device))
            made.model.zero_grad()
            sum(weight * loss.get_loss(output, made.model) for loss, weight in made.loss_functions).backward()
            for name, parameter in named.items():
                if parameter.grad is not None:
                    sums[name] += parameter.grad.square()
        return {name: total / len(loader) for name, total in sums.items()}

    return fisher


def _sevennet(structures: Sequence[Atoms], size: int, stress: bool, device: torch.device) -> tuple[Any, list[Any], Any]:
    """Sevenn's trainer of 7net-0, its batches and its recorder of errors."""
    keys = import_backend("sevenn._keys", _SEVENN)
    graph_data = import_backend("sevenn.atom_graph_data", _SEVENN).AtomGraphData
    dataload = import_backend("sevenn.train.dataload", _SEVENN)
    util = import_backend("sevenn.util", _SEVENN)
    loaders = import_backend("torch_geometric.loader", _SEVENN)
    checkpoint = torch.load(util.pretrained_name_to_path(MODEL), map_location="cpu", weights_only=False)
    model, config = util.model_from_checkpoint(checkpoint)
    config = config | sevennet_options(keys, stress, device)
    graphs = [graph_data.from_numpy_dict(dataload.atoms_to_graph(a, 5.0, False, y_from_calc=True)) for a in structures]
    loader = list(loaders.DataLoader(graphs, batch_size=size, drop_last=True))
    made = import_backend("sevenn.train.trainer", _SEVENN).Trainer.from_config(model, config)
    return made, loader, util.get_error_recorder()


def sevennet_options(keys: Any, stress: bool, device: torch.device) -> dict[str, Any]:
    """The loss, optimizer and constant rate of ours in sevenn's words."""
    return {
        keys.LOSS: "huber",
        keys.LOSS_PARAM: {"delta": 0.01},
        keys.FORCE_WEIGHT: 1.0,
        keys.STRESS_WEIGHT: 0.01,
        keys.IS_TRAIN_STRESS: stress,
        keys.OPTIMIZER: "adam",
        keys.OPTIM_PARAM: {"lr": RATE},
        keys.SCHEDULER: "exponentiallr",
        keys.SCHEDULER_PARAM: {"gamma": 1.0},
        keys.DEVICE: str(device),
        keys.IS_DDP: False,
    }


class MACEEpoch:
    """MACE's trainer on the mean-square loss of energies and forces: one step on each batch, in order.

    Parameters
    ----------
    native
        Is copied.
    structures
        With energies and forces of a calculator.
    size
        Structures per batch.
    device
        Where to train.
    """

    def __init__(self, native: torch.nn.Module, structures: Sequence[Atoms], size: int, device: torch.device) -> None:
        self._train = import_backend("mace.tools.train", _MACE)
        modules = import_backend("mace.modules", _MACE)
        self._model = copy.deepcopy(native).to(device)
        self._device = device
        self._loss = modules.WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=1.0).to(device)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=RATE)
        graphs = _mace_graphs(self._model, structures)
        loader = import_backend("mace.tools.torch_geometric.dataloader", _MACE).DataLoader
        self._batches = list(loader(graphs, batch_size=size, shuffle=False, drop_last=True))

    def __call__(self) -> float:
        """The last loss."""
        arguments = {"forces": True, "virials": False, "stress": False}
        loss = torch.zeros(())
        for batch in self._batches:
            loss, _ = self._train.take_step(
                self._model, self._loss, batch.clone(), self._optimizer, None, arguments, None, self._device
            )
        return float(loss)


def _mace_graphs(native: Any, structures: Sequence[Atoms]) -> list[Any]:
    data = import_backend("mace.data", _MACE)
    tools = import_backend("mace.tools", _MACE)
    table = tools.AtomicNumberTable([int(z) for z in native.atomic_numbers])
    keys = data.KeySpecification(info_keys={"energy": "energy"}, arrays_keys={"forces": "forces"})
    graphs = []
    for atoms in structures:
        labelled = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        labelled.info["energy"] = atoms.get_potential_energy()
        labelled.arrays["forces"] = atoms.get_forces()
        config = data.config_from_atoms(labelled, key_specification=keys)
        graphs.append(data.AtomicData.from_config(config, z_table=table, cutoff=float(native.r_max), heads=["Default"]))
    return graphs
