"""SevenNet models behind the :class:`Potential` interface."""

from __future__ import annotations

import codecs
import copy
import importlib.metadata
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ase_finetune.errors import CheckpointError, InputError
from ase_finetune.graphs import AtomGraph, Edges
from ase_finetune.potentials.arrangement import Arrangement, in_chunks
from ase_finetune.potentials.base import Potential, choose_head, plain_values
from ase_finetune.potentials.bounds import BoundedBuild, check_numbers
from ase_finetune.potentials.convolution import FusedConvolutions
from ase_finetune.potentials.imports import import_backend
from ase_finetune.potentials.torch_files import load_torch_file, write_torch_file

_INSTALL = "'ase_finetune[sevenn]'"

#: Config entries of a checkpoint that describe the model; the rest says how somebody trained it
#: (paths, devices, schedules) and is not copied into saved files.
_MODEL_KEYS = """
    version _model_type chemical_species _number_of_species _type_map _chemical_species_by_atomic_number
    act_gate act_scalar act_radial irreps_manual channel lmax lmax_edge lmax_node is_parity radial_basis
    cutoff_function cutoff num_convolution_layer weight_nn_hidden_neurons train_shift_scale train_denominator
    use_bias_in_linear readout_as_fcn readout_fcn_hidden_neurons readout_fcn_activation self_connection_type
    _normalize_sph interaction_type conv_denominator shift scale use_species_wise_shift_scale dtype
    avg_num_neigh train_avg_num_neigh optimize_by_reduce
    use_modality _number_of_modalities _modal_map use_modal_node_embedding use_modal_self_inter_intro
    use_modal_self_inter_outro use_modal_output_block use_modal_wise_shift use_modal_wise_scale default_modal
    cuequivariance_config use_flash_tp use_oeq
    """.split()

_DATA_KEYS = """
    EDGE_VEC EDGE_IDX EDGE_EMBEDDING EDGE_ATTR ATOMIC_NUMBERS NODE_FEATURE ATOM_TYPE BATCH NUM_ATOMS MODAL_TYPE
    ATOMIC_ENERGY
    """.split()


class SevenNetPotential(Potential):
    """A SevenNet model.

    Its modules are run on our own edge vectors up to the per-atom energies; the module that computes
    forces is left out, because :meth:`Potential.predict` does that for every backend.

    Parameters
    ----------
    native
        ``sevenn``'s ``AtomGraphSequential``.
    config
        The configuration the module was built from (a SevenNet checkpoint's ``config``).
    head
        Modality of a multi-modal model (``"mpa"``, ``"omat24"``, ...).

    Raises
    ------
    InputError
        If the model has several modalities and ``head`` names none of them.
    """

    backend = "sevenn"

    def __init__(self, native: nn.Module, config: dict[str, Any], head: str | None = None) -> None:
        super().__init__()
        self.native = native
        self.config = config
        self.cutoff = float(config["cutoff"])
        type_map: dict[int, int] = {int(z): int(i) for z, i in config["_type_map"].items()}
        self.numbers = tuple(sorted(type_map))
        index = torch.full((120,), -1)
        for number, position in type_map.items():
            index[number] = position
        self.register_buffer("_type_index", index, persistent=False)
        self._type_index: Tensor
        modal_map = (config.get("_modal_map") or {}) if config.get("use_modality") else {}
        self.heads = tuple(modal_map)
        self.head = choose_head(self.heads, head)
        self._modality = int(modal_map[self.head]) if self.head is not None else None
        names = import_backend("sevenn._keys", _INSTALL)
        # Plain strings, not the module, so that the potential can be copied and pickled.
        self._keys = SimpleNamespace(**{name: getattr(names, name, None) for name in _DATA_KEYS})
        sequential: Any = native
        sequential.set_is_batch_data(True)
        self._convolutions = FusedConvolutions(_tensor_products(native))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After a copy or a pickle: keep what copying made of e3nn's constants out of saved files."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for module in self.native.modules():
            # torch.fx turns constants of generated code into buffers when it copies a module (e3nn >= 0.5).
            if isinstance(module, torch.fx.GraphModule):
                constants = {name for name in module._buffers if name.startswith("_tensor_constant")}
                module._non_persistent_buffers_set.update(constants)

    @classmethod
    def from_checkpoint(cls, path: Path, head: str | None = None) -> SevenNetPotential:
        """Load a SevenNet checkpoint (``.pth``) without executing code from it.

        Raises
        ------
        CheckpointError
            If the file is corrupt or not a SevenNet checkpoint.
        """
        content = _load_checkpoint(path)
        config, state = content["config"], content["model_state_dict"]
        version = str(config.get("version", "0"))
        if sorts_weights(version) and not sorts_weights(_installed_version()):
            raise CheckpointError(
                f"{path} was written with sevenn {version}, whose order of weights the installed "
                f"sevenn {_installed_version()} does not know; install sevenn >= 0.11"
            )
        with BoundedBuild(state, path):
            native, config = _build(config, state)
        return cls(native, config, head)

    @property
    def several_orders(self) -> bool:
        """True from sevenn 0.11 on, which sorts the weights of its convolutions when it loads older checkpoints."""
        return sorts_weights(_installed_version())

    def atomic_energies(self, graph: AtomGraph, edges: Edges) -> Tensor:
        keys, num_atoms = self._keys, len(graph.numbers)
        types = self._type_index[graph.numbers]
        arrangement = None
        if self._convolutions.usable() and edges.index.shape[1]:
            edges = edges.in_slots(num_atoms)
            arrangement = Arrangement.of(edges, num_atoms)
        data: dict[str, Tensor] = {
            keys.EDGE_VEC: edges.vectors,
            keys.EDGE_IDX: edges.index,
            keys.ATOMIC_NUMBERS: graph.numbers,
            keys.NODE_FEATURE: types,
            keys.ATOM_TYPE: types,
            keys.BATCH: graph.batch,
            keys.NUM_ATOMS: graph.num_atoms,
        }
        if self._modality is not None:
            data[keys.MODAL_TYPE] = graph.batch.new_full((graph.num_graphs,), self._modality)
        for name, module in self.native.named_children():
            if arrangement is not None and name in self._convolutions:
                data = self._convolve(name, module, data, arrangement)
            else:
                data = module(data)
            if name == "edge_embedding":
                for key in (keys.EDGE_EMBEDDING, keys.EDGE_ATTR):
                    data[key] = edges.mask(data[key])
            if "onehot" in name:  # sevenn's one-hot modules return float32 whatever the model's dtype is
                _cast_floats(data, edges.vectors.dtype)
            if keys.ATOMIC_ENERGY in data:
                break
        return data[keys.ATOMIC_ENERGY].squeeze(1)

    def _convolve(self, name: str, module: Any, data: dict[str, Tensor], edges: Arrangement) -> dict[str, Tensor]:
        """What sevenn's IrrepsConvolution does, over arranged edges."""
        convolution = self._convolutions[name]

        def convolve(features: Tensor, inputs: Tensor, harmonics: Tensor, part: Arrangement) -> Tensor:
            return convolution(features, harmonics, module.weight_nn(inputs), part)

        slots = data[module.key_weight_input], data[module.key_filter]
        sums = in_chunks(convolve, data[module.key_x], slots, edges)
        return data | {module.key_x: sums / module.denominator}

    def architecture(self) -> dict[str, Any]:
        plain = {key: plain_values(self.config[key]) for key in _MODEL_KEYS if key in self.config}
        # JSON turns integer keys into strings: keep them as pairs.
        pairs = [[int(z), int(i)] for z, i in self.config["_type_map"].items()]
        # The weights are ordered as the installed sevenn wants them, whoever wrote the checkpoint.
        return plain | {"_type_map": pairs, "version": _installed_version()}

    def convert_state(self, state: dict[str, Tensor], architecture: dict[str, Any]) -> dict[str, Tensor]:
        """Sevenn 0.11 sorted the weights of its convolutions; older files are brought to that order."""
        old = sorts_weights(architecture["version"])
        if old == sorts_weights(_installed_version()):
            return state
        if old:
            raise CheckpointError(
                f"this model was written with sevenn {architecture['version']}, whose order of weights the installed "
                f"sevenn {_installed_version()} does not know; install sevenn >= 0.11, or export() it there"
            )
        compat = import_backend("sevenn.scripts.backward_compatibility", _INSTALL)
        converted: dict[str, Tensor] = compat.sort_old_convolution(self.native, state)
        return converted

    @classmethod
    def from_architecture(cls, architecture: dict[str, Any], head: str | None = None) -> SevenNetPotential:
        config = copy.deepcopy(architecture) | {"_type_map": {int(z): int(i) for z, i in architecture["_type_map"]}}
        native, config = _build(config, None)
        return cls(native, config, head)

    @torch.no_grad()
    def shift_energies(self, offsets: dict[int, float]) -> None:
        shift = self.native.get_submodule("rescale_atomic_energy").get_parameter("shift")
        if shift.shape[-1] != len(self.numbers):
            raise InputError("this SevenNet model has one energy shift for all elements; use reference='align'")
        row = shift if shift.ndim == 1 else shift[self._modality]
        for number, offset in offsets.items():
            row[self._type_index[number]] += offset

    def save_native(self, path: Path) -> None:
        """Write a SevenNet checkpoint for ``SevenNetCalculator`` and ``sevenn get_model`` (LAMMPS).

        sevenn reads single precision, so a float64 model is rounded to it.
        """
        state = {
            name: value.detach().cpu().to(torch.float32 if value.is_floating_point() else None)
            for name, value in self.native.state_dict().items()
        }
        content = {
            "model_state_dict": state,
            "optimizer_state_dict": None,
            "scheduler_state_dict": None,
            "config": copy.deepcopy(self.config) | {"version": _installed_version()},
            "epoch": 0,
            "time": "exported",
            "hash": "exported",
        }
        write_torch_file(path, content)


def _tensor_products(native: nn.Module) -> dict[str, nn.Module]:
    """e3nn's tensor products inside sevenn's own convolutions, by the name of those; none if there are others."""
    kind: Any = import_backend("sevenn.nn.convolution", _INSTALL).IrrepsConvolution
    convolutions = {name: module for name, module in native.named_children() if hasattr(module, "weight_nn")}
    if any(type(module) is not kind for module in convolutions.values()):
        return {}
    return {name: module.get_submodule("convolution") for name, module in convolutions.items()}


def sorts_weights(version: str) -> bool:
    """Whether this version of sevenn keeps the weights of its convolutions sorted (0.11 and newer)."""
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    return numbers >= [0, 11]


def _installed_version() -> str:
    return importlib.metadata.version("sevenn")


def _cast_floats(data: dict[str, Tensor], dtype: torch.dtype) -> None:
    for key, value in data.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != dtype:
            data[key] = value.to(dtype)


def _renamed(function: Callable[..., Any], module: str) -> Callable[..., Any]:
    """The function under the module name that pickles of older or newer numpy call it by."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    call.__module__, call.__name__, call.__qualname__ = module, function.__name__, function.__name__
    return call


def _load_checkpoint(path: Path) -> dict[str, Any]:
    multiarray: Any = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray  # type: ignore[attr-defined]
    dtypes = [getattr(np.dtypes, name) for name in ("Float32DType", "Float64DType", "Int64DType")]
    numpy_globals = [np.ndarray, np.dtype, *dtypes, codecs.encode]  # newer versions of torch know the last one
    numpy_globals += [
        _renamed(getattr(multiarray, function), module)
        for function in ("_reconstruct", "scalar")
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    ]
    content = load_torch_file(path, "SevenNet checkpoint", numpy_globals)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a SevenNet checkpoint: it holds a {type(content).__name__}")
    for name in ("config", "model_state_dict"):
        if not isinstance(content.get(name), dict):
            raise CheckpointError(f"{path} is not a SevenNet checkpoint: it lacks {name}")
    for name, value in content["model_state_dict"].items():
        if not isinstance(value, Tensor) or not value.isfinite().all():
            raise CheckpointError(f"{path} is damaged: {name!r} is not a tensor of finite numbers")
    check_numbers({key: content["config"][key] for key in _MODEL_KEYS if key in content["config"]}, path)
    return content


def _build(config: dict[str, Any], state: dict[str, Tensor] | None) -> tuple[nn.Module, dict[str, Any]]:
    """Module and completed config, by whichever of sevenn's two interfaces is installed."""
    model_build = import_backend("sevenn.model_build", _INSTALL)
    util = import_backend("sevenn.util", _INSTALL)
    config = copy.deepcopy(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sevenn warns for every default it fills in
        if hasattr(util, "load_checkpoint"):  # sevenn >= 0.11
            checkpoint = import_backend("sevenn.checkpoint", _INSTALL)
            compat = import_backend("sevenn.scripts.backward_compatibility", _INSTALL)
            config = checkpoint._config_cp_routine(config)
            native = model_build.build_E3_equivariant_model(copy.deepcopy(config))
            if state is not None:
                state = compat.patch_state_dict_if_old(state, config, native)
                native.load_state_dict(state, strict=True)
        else:
            if state is None:
                defaults = import_backend("sevenn._const", _INSTALL).model_defaults(config)
                config = dict(defaults) | util._patch_old_config(config)
                native = model_build.build_E3_equivariant_model(config)
            else:
                native, config = util.model_from_checkpoint({"config": config, "model_state_dict": state})
    return native, config
