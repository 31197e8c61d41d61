"""Potentials on disk without code in them: a folder with JSON and safetensors.

``potential.json`` says what the potential is, ``weights.safetensors`` holds the native module's
tensors. Loading rebuilds the module with the installed backend: nothing of the file is executed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ase_finetune.errors import CheckpointError, FinetuneError, InputError, OutputExistsError
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials.backends import BACKENDS, backend_class
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.imports import LOAD_ERRORS
from ase_finetune.version import __version__

CONFIG_FILE = "potential.json"
WEIGHTS_FILE = "weights.safetensors"
FORMAT_VERSION = 1

_DTYPES = {"torch.float32": "float32", "torch.float64": "float64"}
_described: set[str] = set()  # architectures that were seen to rebuild in this process


def potential_hash(potential: Potential) -> str:
    """SHA-256 of a potential's backend and parameters.

    Two copies of the same weights have the same hash on any device, with any head in use, and in
    float64 as in float32: names, shapes and values rounded to float32 are hashed. Constants of the
    library that built the module are not, so the hash is the same for every version of it.
    """
    digest = hashlib.sha256(potential.backend.encode())
    for name, parameter in sorted(potential.native_parameters()):
        digest.update(f"|{name}|{tuple(parameter.shape)}|float32|".encode())
        values = parameter.detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def save_potential(
    potential: Potential, path: Path | str, *, metadata: dict[str, Any] | None = None, overwrite: bool = False
) -> None:
    """Write a potential as a folder that :func:`load_potential_dir` loads, bit for bit.

    The folder appears under its name only when it is complete.

    Parameters
    ----------
    potential
        On any device, in float32 or float64.
    path
        The folder; missing parents are made.
    metadata
        Anything JSON can hold: origin, configuration, errors, reference offsets.
    overwrite
        Replace an earlier potential there; other files in the folder stay.

    Raises
    ------
    OutputExistsError
        If ``path`` exists and ``overwrite`` is not set, or it is something else than a saved potential.
    CheckpointError
        If the potential's architecture cannot be described, so that the file would not load.
    InputError
        If the metadata is not JSON-able, or the folder cannot be written.
    """
    path = Path(path)
    _check_target(path, overwrite)
    if str(potential.dtype) not in _DTYPES:
        raise InputError(f"a potential in {potential.dtype} cannot be saved; convert it to float32 or float64")
    architecture = potential.architecture()
    state = _state(potential)
    _check_rebuilds(potential, architecture, state)
    content = {
        "format_version": FORMAT_VERSION,
        "backend": potential.backend,
        "head": potential.head,
        "dtype": _DTYPES[str(potential.dtype)],
        "architecture": architecture,
        "metadata": metadata or {},
        "versions": _versions(),
    }
    _to_json(content, "metadata")  # before anything is written
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            save_file(state, new / WEIGHTS_FILE)
            content["weights_sha256"] = _file_hash(new / WEIGHTS_FILE)
            (new / CONFIG_FILE).write_text(_to_json(content, "metadata"), encoding="utf-8")
            _swap(new, path, Path(scratch) / "old")
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write the potential to {path}: {error}") from error


def load_potential_dir(path: Path | str, *, head: str | None = None) -> tuple[Potential, dict[str, Any]]:
    """Load a folder written by :func:`save_potential`, on the CPU and in the dtype it was saved in.

    Parameters
    ----------
    path
        The folder.
    head
        Another head than the one that was in use.

    Returns
    -------
    The potential, and the metadata it was saved with.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged, of a newer format, or does not fit the installed backend; the
        message names the file.
    """
    path = Path(path)
    content = _read_config(path / CONFIG_FILE)
    state = _read_weights(path / WEIGHTS_FILE, content["weights_sha256"])
    head = content["head"] if head is None else head
    try:
        potential = _rebuild(content["backend"], content["architecture"], head, getattr(torch, content["dtype"]))
    except FinetuneError:
        raise
    except (AssertionError, *LOAD_ERRORS) as error:  # whatever a backend of another version raises
        written = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        raise CheckpointError(
            f"{path / CONFIG_FILE} does not rebuild here ({error}); written with {written}"
        ) from error
    state = potential.convert_state(state, content["architecture"])
    _load_state(potential, state, path / WEIGHTS_FILE)
    metadata: dict[str, Any] = content["metadata"]
    return potential, metadata


def _state(potential: Potential) -> dict[str, Tensor]:
    # Copies: safetensors refuses tensors that share memory.
    return {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in potential.native.state_dict().items()
    }


def _rebuild(backend: str, architecture: dict[str, Any], head: str | None, dtype: torch.dtype) -> Potential:
    # Initial weights are drawn and thrown away: saving in the middle of a training must not move
    # the random numbers of the training.
    with torch.random.fork_rng(devices=[]):
        potential = backend_class(backend).from_architecture(architecture, head)
    potential.native.to(dtype)
    return potential


def _load_state(potential: Potential, state: dict[str, Tensor], origin: Path | str) -> None:
    expected = potential.native.state_dict()
    problems = [f"lacks {name}" for name in expected if name not in state]
    problems += [f"has {name}, which the model does not" for name in state if name not in expected]
    problems += [
        f"has {name} of shape {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{origin} does not fit the model: it {'; '.join(problems[:3])}{more}")
    potential.native.load_state_dict(state, strict=True)


def _check_rebuilds(potential: Potential, architecture: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Refuse to write what would not load, or load as another model; once per architecture."""
    if potential.backend not in BACKENDS:
        raise InputError(f"backend {potential.backend!r} is not registered in ase_finetune.potentials.backends")
    key = potential.backend + _to_json(architecture, "architecture")
    if key in _described:
        return
    clone = _rebuild(potential.backend, architecture, potential.head, potential.dtype)
    _load_state(clone, state, "the rebuilt architecture")
    clone.to(potential.device)
    probe = _probe(potential)
    with torch.no_grad():
        same = torch.allclose(potential.energies(probe), clone.energies(probe), rtol=1e-5, atol=1e-5, equal_nan=True)
    if not same:
        raise CheckpointError("this model cannot be described without its code; use export() for its native format")
    _described.add(key)


def _probe(potential: Potential) -> AtomGraph:
    """A bent chain of four atoms, of the first and the last element the potential knows."""
    symbols = [chemical_symbols[potential.numbers[index]] for index in (0, -1, -1, 0)]
    step = 0.6 * potential.cutoff
    chain = Atoms(symbols, positions=[(0, 0, 0), (step, 0, 0), (step, step, 0), (step, 0.5 * step, step)])
    return AtomGraph.from_atoms(chain, potential.cutoff, dtype=potential.dtype).to(potential.device)


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not overwrite:
        raise OutputExistsError(f"{path} exists; pass overwrite=True to replace it, or choose another name")
    if not (path / CONFIG_FILE).is_file():
        raise OutputExistsError(f"{path} exists and is not a saved potential (no {CONFIG_FILE}): it is not replaced")


def _swap(new: Path, path: Path, old: Path) -> None:
    if path.exists():
        for other in path.iterdir():
            if other.name not in (CONFIG_FILE, WEIGHTS_FILE):
                copy = partial(shutil.copytree, symlinks=True) if other.is_dir() else shutil.copy2
                copy(other, new / other.name)
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise


def _to_json(content: Any, what: str) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, (np.ndarray, np.generic, Tensor)):
            return value.tolist()
        if isinstance(value, Path):
            return str(value)
        raise InputError(f"{what} holds a {type(value).__name__}, which JSON cannot: {value!r}")

    try:
        return json.dumps(content, indent=1, default=plain)
    except TypeError as error:  # keys that are not strings or numbers
        raise InputError(f"{what} cannot be written as JSON: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is not a saved potential: it lacks {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    needed = {"format_version", "backend", "head", "dtype", "architecture", "metadata", "versions", "weights_sha256"}
    missing = needed - set(content) if isinstance(content, dict) else needed
    if missing:
        raise CheckpointError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
    if content["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {content['format_version']}, this ase_finetune ({__version__}) reads "
            f"{FORMAT_VERSION}; it was written by ase_finetune {content['versions'].get('ase_finetune')}"
        )
    if content["dtype"] not in _DTYPES.values():
        raise CheckpointError(f"{path} is damaged: unknown dtype {content['dtype']!r}")
    config: dict[str, Any] = content
    return config


def _read_weights(path: Path, expected_hash: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is not complete: it lacks {path.name}")
    if _file_hash(path) != expected_hash:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {CONFIG_FILE}")
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return state


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    installed = {name for names in importlib.metadata.packages_distributions().values() for name in names}
    backends = sorted(installed & {"torch", "e3nn", "sevenn", "mace-torch"})
    return {"ase_finetune": __version__} | {name: importlib.metadata.version(name) for name in backends}
