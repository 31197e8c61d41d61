"""Potentials on disk without code in them: a folder with JSON and safetensors.

``potential.json`` says what the potential is and which file holds the native module's tensors. Loading rebuilds
the module with the installed backend: nothing of the files is executed.

The file with the weights is called after its content and written first, then ``potential.json`` is put in place
at once, then earlier weights are removed. Whenever a save is killed, either the earlier or the new potential loads.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.data import chemical_symbols
from safetensors.torch import save
from torch import Tensor

from ase_finetune.errors import CheckpointError, FinetuneError, InputError, OutputExistsError
from ase_finetune.files import (
    file_hash,
    is_there,
    make_folder,
    read_safetensors,
    remove_parts,
    to_json,
    write_bytes,
    write_text,
)
from ase_finetune.graphs import AtomGraph
from ase_finetune.potentials.backends import BACKENDS, backend_class
from ase_finetune.potentials.base import Potential
from ase_finetune.potentials.bounds import BoundedBuild, check_numbers
from ase_finetune.potentials.formats import (
    CONFIG_FILE,
    is_leftover,
    is_weights,
    read_description,
    weights_name,
    write_description,
)
from ase_finetune.potentials.imports import ONE_AT_A_TIME
from ase_finetune.version import __version__

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


def state_hash(potential: Potential) -> str:
    """SHA-256 of everything a potential's predictions depend on: buffers too, the head, and the dtype."""
    text = f"{potential.backend} {potential.head} {potential.dtype} {potential.cutoff}"
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(potential.native.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_potential(
    potential: Potential, path: Path | str, *, metadata: dict[str, Any] | None = None, overwrite: bool = False
) -> None:
    """Write a potential as a folder that :func:`load_potential_dir` loads, bit for bit.

    At any moment the folder holds a whole potential, the earlier or the new one, if one process at a time writes to it.

    Parameters
    ----------
    potential
        On any device, in float32 or float64.
    path
        The folder; missing parents are made.
    metadata
        Anything JSON can hold: origin, configuration, errors, reference offsets.
    overwrite
        Replace an earlier potential there; other files in the folder stay. What a killed save left behind
        needs no permission.

    Raises
    ------
    OutputExistsError
        If ``path`` exists and ``overwrite`` is not set, or it is something else than a saved potential.
    CheckpointError
        If the potential's architecture cannot be described, so that the file would not load.
    InputError
        If the metadata is not JSON-able.
    OutputError
        If the folder cannot be written; an earlier potential there is as it was.
    """
    path = Path(path)
    _check_target(path, overwrite)
    if str(potential.dtype) not in _DTYPES:
        raise InputError(f"a potential in {potential.dtype} cannot be saved; convert it to float32 or float64")
    architecture = potential.architecture()
    state = _state(potential)
    with ONE_AT_A_TIME:
        _check_rebuilds(potential, architecture, state)
    weights = save(state)
    digest = hashlib.sha256(weights).hexdigest()
    content = {
        "backend": potential.backend,
        "head": potential.head,
        "dtype": _DTYPES[str(potential.dtype)],
        "architecture": architecture,
        "metadata": metadata or {},
        "versions": _versions(),
        "weights_file": weights_name(digest),
        "weights_sha256": digest,
    }
    description = write_description(content)  # before anything is written
    make_folder(path)
    write_bytes(path / weights_name(digest), weights)
    write_text(path / CONFIG_FILE, description)
    _remove_earlier(path, weights_name(digest))


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
    origin = path / CONFIG_FILE
    content = read_description(origin)
    architecture = content["architecture"]
    check_numbers(architecture, origin)
    state = _read_weights(path / content["weights_file"], content["weights_sha256"])
    head = content["head"] if head is None else head
    try:
        with BoundedBuild(state, origin):
            potential = _rebuild(content["backend"], architecture, head, getattr(torch, content["dtype"]))
        state = potential.convert_state(state, architecture)
    except FinetuneError as error:
        raise error if str(origin) in str(error) else type(error)(f"{origin}: {error}") from error
    except Exception as error:  # whatever a backend, perhaps of another version, stumbles over
        written = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        reason = (str(error) or type(error).__name__)[:500]
        raise CheckpointError(f"{origin} does not rebuild here ({reason}); written with {written}") from error
    _load_state(potential, state, path / content["weights_file"])
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
    key = potential.backend + to_json(architecture, "architecture")
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
    return AtomGraph.from_atoms(chain, potential.cutoff).to(potential.device)


def _check_target(path: Path, overwrite: bool) -> None:
    if not is_there(path) or (path.is_dir() and all(is_leftover(item) for item in path.iterdir())):
        return
    if not overwrite:
        raise OutputExistsError(f"{path} exists; pass overwrite=True to replace it, or choose another name")
    if not (path / CONFIG_FILE).is_file():
        raise OutputExistsError(f"{path} exists and is not a saved potential (no {CONFIG_FILE}): it is not replaced")


def _remove_earlier(path: Path, current: str) -> None:
    # What cannot be removed only takes space: the description names its weights.
    with contextlib.suppress(OSError):
        for file in path.iterdir():
            if is_weights(file) and file.name != current:
                file.unlink(missing_ok=True)
    remove_parts(path, "weights*.safetensors")
    remove_parts(path, CONFIG_FILE)


def _read_weights(path: Path, expected_hash: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is not complete: it lacks {path.name}")
    try:
        found = file_hash(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if found != expected_hash:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {CONFIG_FILE}")
    return read_safetensors(path)[1]


@functools.cache
def _versions() -> dict[str, str]:
    found = {"ase_finetune": __version__}
    for name in ("e3nn", "mace-torch", "sevenn", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
