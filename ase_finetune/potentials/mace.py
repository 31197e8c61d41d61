"""MACE models behind the :class:`Potential` interface."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ase_finetune.errors import CheckpointError, UntrustedFileError
from ase_finetune.files import file_hash
from ase_finetune.graphs import AtomGraph, Edges
from ase_finetune.potentials.arrangement import Arrangement
from ase_finetune.potentials.base import Potential, choose_head
from ase_finetune.potentials.convolution import Convolution, FusedConvolutions
from ase_finetune.potentials.imports import LOAD_ERRORS, import_backend, unchanged_environment
from ase_finetune.potentials.mace_architecture import INSTALL, build, describe
from ase_finetune.potentials.torch_files import write_torch_file

#: What models with embeddings of the whole structure get, the defaults of MACECalculator:
#: neutral, spin multiplicity 1.
_STRUCTURE_FEATURES = {"total_charge": 0.0, "total_spin": 1.0}


class MACEPotential(Potential):
    """A MACE model.

    MACE makes its edge vectors as ``x[receiver] - x[sender] + shift``, where the receiver is the atom i whose edges
    are summed. It is called with all positions zero and the reverse of our vectors as shifts, so its energy depends on
    the vectors alone.

    Models with embeddings of charge and spin (MACE-OMOL) are evaluated as neutral singlets.

    Parameters
    ----------
    native
        ``mace.modules.MACE`` or ``ScaleShiftMACE``.
    head
        Head of a multi-head model; by default the only one, or the one called "default".

    Raises
    ------
    CheckpointError
        If the module is of another class, or needs inputs beyond the structure.
    InputError
        If the model has several heads and ``head`` names none of them.
    """

    backend = "mace"

    def __init__(self, native: nn.Module, head: str | None = None) -> None:
        super().__init__()
        _check_class(native)
        _replace_empty_parameters(native)
        self.native = native
        model: Any = native
        self.cutoff = float(model.r_max)
        order = [int(z) for z in model.atomic_numbers]
        self.numbers = tuple(sorted(order))
        index = torch.full((120,), -1)
        index[order] = torch.arange(len(order))
        self.register_buffer("_type_index", index, persistent=False)
        self._type_index: Tensor
        self.heads = tuple(getattr(native, "heads", None) or ("default",))  # models before heads: MACE's name
        self.head = choose_head(self.heads, _default_head(self.heads) if head is None else head)
        self._head_index = self.heads.index(str(self.head))
        self._features = _structure_features(native)
        self._convolutions = FusedConvolutions(_tensor_products(native))

    @classmethod
    def from_checkpoint(cls, path: Path, head: str | None = None, trust_pickle: bool = False) -> MACEPotential:
        """Load a MACE ``.model`` file, which is a pickle: loading it runs code it contains.

        The file is the whole module, with the code that e3nn generated for it as source text, which
        ``torch.fx`` executes to bring it back. A list of allowed names for torch's safe loading would have to
        contain the function that executes it, and so allow everything.

        Parameters
        ----------
        path
            File written by MACE's trainer, ``mace_mp`` and the like, or :meth:`save_native`.
        head
            Head of a multi-head model.
        trust_pickle
            That you know where the file comes from. :func:`ase_finetune.potentials.load_potential` knows it of
            official models.

        Raises
        ------
        UntrustedFileError
            If ``trust_pickle`` is not set; the message has the file's SHA-256.
        CheckpointError
            If the file is corrupt or holds no MACE model.
        """
        if not trust_pickle:
            raise UntrustedFileError(
                f"{path} is a pickled MACE model, which can run any code when it is loaded; if you trust its origin "
                f"(its SHA-256 is {file_hash(path)}), pass trust_pickle=True"
            )
        import_backend("mace.modules", INSTALL)
        try:
            with unchanged_environment(), _quiet():
                native = torch.load(path, map_location="cpu", weights_only=False)
        except LOAD_ERRORS as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{path} is not a readable MACE model: {reason}") from error
        if not isinstance(native, nn.Module):
            kind = type(native).__name__
            raise CheckpointError(
                f"{path} holds a {kind}, not a MACE model; MACE's trainer writes those as .model files"
            )
        potential = cls(native, head)
        _add_path_flags(native)
        # MACE's trainer and MACECalculator leave pickles whose parameters are all frozen.
        for parameter in native.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_()
        return potential

    def atomic_energies(self, graph: AtomGraph, edges: Edges) -> Tensor:
        num_atoms, dtype = len(graph.numbers), edges.vectors.dtype
        types = self._type_index[graph.numbers]
        convolutions = self._convolutions if self._convolutions.usable() and edges.index.shape[1] else None
        if convolutions is not None:
            edges = edges.in_slots(num_atoms)
        data: dict[str, Tensor] = {
            "positions": edges.vectors.new_zeros((num_atoms, 3)),
            "shifts": -edges.vectors,
            "edge_index": edges.index.flip(0),
            "node_attrs": nn.functional.one_hot(types, len(self.numbers)).to(dtype),
            "batch": graph.batch,
            "ptr": nn.functional.pad(graph.num_atoms.cumsum(0), (1, 0)),
            "cell": graph.cell.detach().to(dtype).reshape(-1, 3),
            "head": graph.batch.new_full((graph.num_graphs,), self._head_index),
        }
        for name, value in self._features.items():
            data[name] = edges.vectors.new_full((graph.num_graphs,), value)
        out = _with_edges(self.native, edges, num_atoms, convolutions)(data, compute_force=False)
        energies: Tensor = out["node_energy"]  # float64 in every model, by construction
        if hasattr(self.native, "embedding_readout"):
            # MACE counts the energy of the embedding in the total only: share it among the atoms.
            total = energies.new_zeros(graph.num_graphs).index_add(0, graph.batch, energies)
            energies = energies + ((out["energy"] - total) / graph.num_atoms)[graph.batch]
        return energies.to(dtype)

    def architecture(self) -> dict[str, Any]:
        """JSON-able description from which :meth:`from_architecture` rebuilds the module.

        Raises
        ------
        CheckpointError
            If the model has parts that MACE itself cannot describe.
        """
        return describe(self.native)

    @classmethod
    def from_architecture(cls, architecture: dict[str, Any], head: str | None = None) -> MACEPotential:
        with _quiet():
            return cls(build(architecture), head)

    @torch.no_grad()
    def shift_energies(self, offsets: dict[int, float]) -> None:
        model: Any = self.native
        table: Tensor = model.atomic_energies_fn.atomic_energies
        row = table if table.ndim == 1 else table[self._head_index]
        for number, offset in offsets.items():
            row[self._type_index[number]] += offset

    def save_native(self, path: Path) -> None:
        """Write a ``.model`` file for ``MACECalculator`` and MACE's converters (LAMMPS, OpenMM)."""
        with _quiet():
            write_torch_file(path, copy.deepcopy(self.native).cpu())


class _Convolve(nn.Module):
    """In the place of a tensor product, where MACE leaves gathering and summing to it, as to fused kernels."""

    def __init__(self, convolution: Convolution, arrangement: Arrangement) -> None:
        super().__init__()
        self._convolution, self._arrangement = convolution, arrangement

    def forward(self, features: Tensor, harmonics: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        del edge_index  # the arrangement is of the same edges
        return self._convolution(features, harmonics, weights, self._arrangement)


class _Masked(nn.Module):
    """In the place of a module that makes features of edges: zero for those that do not count."""

    def __init__(self, module: nn.Module, edges: Edges) -> None:
        super().__init__()
        self._module, self._edges = module, edges

    def forward(self, *inputs: Tensor) -> Any:
        made = self._module(*inputs)
        if isinstance(made, tuple):  # radial features, and the cutoff function where they do not contain it
            return tuple(None if part is None else self._edges.mask(part) for part in made)
        return self._edges.mask(made)


def _tensor_products(native: nn.Module) -> dict[str, nn.Module]:
    """e3nn's tensor products of the interactions, by position; none if a block cannot do without them."""
    blocks: Any = native.interactions
    codes = [getattr(type(block).forward, "__code__", None) for block in blocks]
    if not all(code is not None and "conv_fusion" in code.co_consts for code in codes):
        return {}  # a MACE before fused kernels
    return {str(index): block.conv_tp for index, block in enumerate(blocks)}


def _with_edges(native: Any, edges: Edges, num_atoms: int, convolutions: FusedConvolutions | None) -> Any:
    """The model with other convolutions, and features of edges masked; it shares all else with the given one."""
    if edges.inside is None:
        return native
    blocks, arrangement = nn.ModuleList(), Arrangement.of(edges, num_atoms)
    for index, block in enumerate(native.interactions):
        parts = _masked(block, edges, "density_fn")  # it sees the elements of a pair, too: it is not zero without them
        if convolutions is not None:
            parts["conv_tp"] = _Convolve(convolutions[str(index)], arrangement)
        view = _view(block, **parts)
        if convolutions is not None:
            view.conv_fusion = True
        blocks.append(view)
    return _view(native, interactions=blocks, **_masked(native, edges, "spherical_harmonics", "radial_embedding"))


def _masked(module: Any, edges: Edges, *names: str) -> dict[str, nn.Module]:
    return {name: _Masked(getattr(module, name), edges) for name in names if hasattr(module, name)}


def _view(module: nn.Module, **submodules: nn.Module) -> Any:
    """A module with other submodules, and otherwise the same parameters, buffers and attributes."""
    view = object.__new__(type(module))
    view.__dict__.update(module.__dict__, _modules={**module._modules, **submodules})
    return view


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the deprecation warnings of e3nn's and MACE's use of torch.jit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_class(native: nn.Module) -> None:
    modules = import_backend("mace.modules", INSTALL)
    # Subclasses add dipoles, charges or long-range terms that the edge vectors do not determine.
    if type(native) not in (modules.MACE, modules.ScaleShiftMACE):
        raise CheckpointError(
            f"a model of class {type(native).__name__} is not supported: only MACE and ScaleShiftMACE give an energy "
            "that depends on the vectors between neighbours alone"
        )


def _replace_empty_parameters(native: nn.Module) -> None:
    """Put plain parameters in place of MACE's EmptyParam, which cannot be deep-copied."""
    for module in native.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if type(parameter).__name__ == "EmptyParam":
                module.register_parameter(name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _add_path_flags(native: nn.Module) -> None:
    """Give models pickled by an older MACE the flags for vanishing paths that newer ones keep."""
    contraction_module = import_backend("mace.modules.symmetric_contraction", INSTALL)
    if not hasattr(contraction_module, "EmptyParam"):
        return
    for module in native.modules():
        if not isinstance(module, contraction_module.Contraction) or hasattr(module, "weights_max_zeroed"):
            continue
        order = int(module.correlation)
        names = [*(f"weights_{index}_zeroed" for index in range(order - 1)), "weights_max_zeroed"]
        for nu, name in enumerate(names, start=1):
            vanishes = not module.get_buffer(f"U_matrix_{nu}").any()
            module.register_buffer(name, torch.tensor(bool(vanishes)))


def _default_head(heads: tuple[str, ...]) -> str | None:
    """The head MACECalculator takes when none is named."""
    return next((name for name in heads if name.lower() == "default"), None)


def _structure_features(native: nn.Module) -> dict[str, float]:
    specs: dict[str, Any] = getattr(native, "embedding_specs", None) or {}
    for name, spec in specs.items():
        if name not in _STRUCTURE_FEATURES or spec.get("per") != "graph":
            raise CheckpointError(
                f"this MACE model embeds {name!r} per {spec.get('per')}, an input that is not supported; "
                f"supported are {', '.join(_STRUCTURE_FEATURES)} per graph"
            )
    return {name: _STRUCTURE_FEATURES[name] for name in specs}
